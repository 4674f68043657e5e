import torch, time, ctypes
from distillery.networks import block as B
torch.manual_seed(0); torch.set_num_threads(1)
t=time.time(); print(B.library(), time.time()-t)
for shape in [(4,6,8,8),(3,5,9,7),(2,128,32,32)]:
    x=torch.randn(shape, requires_grad=True); w=(torch.rand(shape[1])+.5).requires_grad_(); b=(torch.randn(shape[1])*.3).requires_grad_()
    outs=[]
    for f in (B.plain,B.block):
        y=f(x,w,b); c=torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        g=torch.autograd.grad((y*c).sum()+ (y**2).sum(),(x,w,b),create_graph=True)
        cs=[torch.randn(one.shape, generator=torch.Generator().manual_seed(2+i)) for i,one in enumerate(g)]
        h=torch.autograd.grad(sum((a*e).sum() for a,e in zip(g,cs)),(x,w,b))
        outs.append([y,*g,*h])
    for a,e in zip(*outs): print(shape, tuple(a.shape), float((a-e).abs().max()/a.abs().max()))
x=torch.randn(64,128,32,32); w=torch.ones(128); b=torch.zeros(128)
def tm(f,n=10):
    f(); s=time.process_time()
    for _ in range(n): f()
    return (time.process_time()-s)/n*1e3
with torch.no_grad(): print('fwd', tm(lambda:B.plain(x,w,b)), tm(lambda:B.block(x,w,b)))
xr=x.clone().requires_grad_(); wr=w.clone().requires_grad_(); br=b.clone().requires_grad_()
def tr(f): y=f(xr,wr,br); torch.autograd.grad(y.sum(),(xr,wr,br))
print('f+b', tm(lambda:tr(B.plain)), tm(lambda:tr(B.block)))
def d2(f):
    y=f(xr,wr,br); g=torch.autograd.grad((y*y).sum(),(xr,wr,br),create_graph=True); torch.autograd.grad(sum((a*a).sum() for a in g),(xr,wr,br))
print('f+b+b2', tm(lambda:d2(B.plain),4), tm(lambda:d2(B.block),4))
