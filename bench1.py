
import os, sys, time, resource, ctypes
if os.environ.get("MAL"):
    libc=ctypes.CDLL(None); print([libc.mallopt(-3, 2**30), libc.mallopt(-1, 2**31-1)] if os.environ["MAL"]=="1" else [libc.mallopt(-4,0), libc.mallopt(-1,2**31-1)])
import torch
torch.set_num_threads(1)
from distillery.networks import ConvNet
from distillery.data import ImageSet, TensorSource
from distillery.data.images import fit_standardize
from dataclasses import replace
from distillery.measure import workloads
from distillery.seeds import generator
from distillery.evaluation import Protocol, fit
from distillery.training.dsa import DSA
import distillery.measure.workloads as W
g=torch.Generator().manual_seed(0)
C=int(os.environ.get("C","3"))
px=torch.randint(0,256,(C*300,3,32,32),generator=g,dtype=torch.uint8); y=torch.arange(C).repeat_interleave(300)
im=ImageSet.of(px,y); im=replace(im,transform=fit_standardize(im))
net=ConvNet((3,32,32),C)
def tm(name,f,n=2):
    f(); b=resource.getrusage(resource.RUSAGE_SELF); s=time.process_time()
    for _ in range(n): f()
    e=(time.process_time()-s)/n; a=resource.getrusage(resource.RUSAGE_SELF)
    print(f"{name}: {e*1e3:.0f} ms, faults {(a.ru_minflt-b.ru_minflt)//n}, sys {(a.ru_stime-b.ru_stime)/n:.2f}", flush=True)

sys.path.insert(0,"tests/benchmarks"); sys.path.insert(0,"tests")
os.environ["DISTILLERY_SHAPES"]="x"
import torch.nn.functional as F
from torch import nn
from distillery.training.dsa import augment, draw
def bare_matching(ipc, loss_of):
    stream, module = generator(1,"loop"), W.module_of(net,0,torch.device("cpu"))
    made=W.first_of_class(im,ipc); images=made.tensors["images"].clone().requires_grad_(); members=[im.of_class(c) for c in range(C)]
    def step():
        for c in range(C):
            idx=members[c][torch.randperm(len(members[c]),generator=stream)[:256]]
            d=draw(DSA,1,1,stream,siamese=True)
            real=augment(im.batch(idx)[None],d)[0]; ours=augment(images[made.tensors["targets"]==c][None],d)[0]
            loss_of(module,real,ours,c).backward()
    return step
def bare_distribution(module, real, ours, c):
    features=nn.Sequential(*list(module)[:-1])
    with torch.no_grad(): mean=features(real).mean(0)
    return (mean-features(ours).mean(0)).square().sum()
def bare_gradient(module, real, ours, c):
    weights=[v for v in module.parameters() if v.ndim>1]; grads=[]
    for images,graph in ((real,False),(ours,True)):
        loss=F.cross_entropy(module(images), torch.full((len(images),),c)); grads.append(torch.autograd.grad(loss,weights,create_graph=graph))
    total=0.
    for b,a in zip(*grads):
        a,b=a.flatten(1),b.flatten(1); total=total+(1-(a*b).sum(1)/(a.norm(dim=1)*b.norm(dim=1)+1e-6)).sum()
    return total
def bare_training(modules, source, epochs, batch):
    stream=generator(0,"bare")
    for m in modules:
        opt=torch.optim.SGD(m.parameters(),0.01,momentum=.9,weight_decay=5e-4)
        for _ in range(epochs):
            for i in torch.randperm(len(source),generator=stream).split(batch):
                x=augment(source.images[i][None], draw(DSA,1,len(i),stream))[0]
                opt.zero_grad(); F.cross_entropy(m(x),source.targets[i]).backward(); opt.step()
which=os.environ.get("W","DM,DC,ev1,ev10,train").split(",")
if "DM" in which:
    if os.environ.get("BARE"): tm("bare DM", bare_matching(1,bare_distribution))
    tm("DM", W.distribution_step(net,"float32",False,im,1,256)["fast"])
if "DC" in which:
    if os.environ.get("BARE"): tm("bare DC", bare_matching(1,bare_gradient))
    tm("DC", W.gradient_step(net,"float32",False,im,1,256)["fast"])
for ipc in (1,10):
  if f"ev{ipc}" in which:
    s=W.first_of_class(im,ipc).source()
    if os.environ.get("BARE"): tm(f"bare ev{ipc}", lambda: bare_training([W.module_of(net,i,torch.device("cpu")) for i in range(5)], s, 2, 256))
    tm(f"ev{ipc}", lambda: fit(net, s, Protocol(networks=5,epochs=1,augmentation=DSA), generator(0,"x")))
if "train" in which:
    s=TensorSource(im.batch(torch.arange(512)), im.targets[:512])
    if os.environ.get("BARE"): tm("bare train256", lambda: bare_training([W.module_of(net,0,torch.device("cpu"))], s, 1, 256))
    tm("train256", W.training(net,net,s,1,256)["fast"])
