import os
os.environ["W"]="none"
exec(open('bench1.py').read())
from torch.profiler import profile, ProfilerActivity
s=W.first_of_class(im,int(os.environ.get("IPC","10"))).source()
f=lambda: fit(net, s, Protocol(networks=5,epochs=3,augmentation=DSA), generator(0,"x"))
f()
with profile(activities=[ProfilerActivity.CPU]) as p: f()
print(p.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=40))
