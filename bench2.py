import os, time, resource, torch
torch.set_num_threads(1)
import distillery
from distillery.networks import ConvNet
from distillery.matching import trajectory as T
from distillery.matching.trajectory import *
from distillery.experts import Experts
from distillery.data.synthetic import Synthetic
from distillery.seeds import generator
from distillery.training.dsa import DSA
ipc=int(os.environ.get("IPC","1")); N=int(os.environ.get("N","20"))
net=ConvNet((3,32,32),10)
g=generator(0,"x"); a=net.init(g,1); b=net.init(g,1)
ex=Experts({k: torch.stack([a[k][0],b[k][0],b[k][0]])[None] for k in a})
made=Synthetic({"images":torch.randn(10*ipc,3,32,32,generator=g),"targets":torch.arange(10).repeat_interleave(ipc),"step_size":torch.tensor(.01)})
if "KEPT" in os.environ and hasattr(T,"KEPT"): T.KEPT=int(float(os.environ["KEPT"]))
o=TrajectoryMatching(net,ex,N,2,StartEpochs(0,1),augmentation=DSA,gradient=os.environ.get("G","exact"))
st=o.start(made,generator(1,"s"))
r=o.step(made,st,None,generator(2,"d"))
base=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
s=time.process_time(); r=o.step(made,st,None,generator(2,"d")); e=time.process_time()-s
import hashlib
print(os.environ.get("G","exact"), f"{e*1e3/N:.0f} ms a student step, peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20:.2f} GB", hashlib.sha256(r[0]["images"].numpy().tobytes()).hexdigest()[:8], float(r[2]["loss"]))
