import torch
from distillery.networks import block as B
torch.manual_seed(0)
x=torch.randn(2,3,4,4,dtype=torch.float64,requires_grad=True); w=torch.rand(3,dtype=torch.float64,requires_grad=True); b=torch.randn(3,dtype=torch.float64,requires_grad=True)
m=torch.randn(3,dtype=torch.float64,requires_grad=True)
for f in (B.plain,B.block):
    y=f(x,w,b)
    gw,=torch.autograd.grad((y**3).sum(), w, create_graph=True)
    loss=((gw-m)**2).sum()
    pulled,=torch.autograd.grad(loss,x,create_graph=True)
    try: print(torch.autograd.grad((pulled*torch.arange(96).view(2,3,4,4)).sum(), m))
    except Exception as e: print(type(e), e)
