exec(open('bench2.py').read().split("base=")[0])
from torch.profiler import profile, ProfilerActivity
with profile(activities=[ProfilerActivity.CPU]) as p: o.step(made,st,None,generator(2,"d"))
print(p.key_averages().table(sort_by="self_cpu_time_total", row_limit=22, max_name_column_width=50))
