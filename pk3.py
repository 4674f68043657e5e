import gc
exec(open('pk.py').read().split('s=make(10)')[0])
s=make(10); s(); s=make(1000)
import distillery.matching.distribution as D
o=D.DistributionMatching.real_means; n=[0]
def rm(self,c,real,w,here):
    n[0]+=1
    if n[0] in (20,40):
        t=[x for x in gc.get_objects() if torch.is_tensor(x) and x.numel()>100000]
        print(r(), sorted((tuple(x.shape), str(x.dtype)) for x in t)[:20], len(t))
    return o(self,c,real,w,here)
D.DistributionMatching.real_means=rm
s()
