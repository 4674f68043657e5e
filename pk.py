import resource, sys, torch
from distillery.data import ImageSet
from distillery.matching.distribution import DistributionMatching
from distillery.matching.gradient import GradientMatching
from distillery.measure.workloads import distribution_step, gradient_step
from distillery.networks import ConvNet
torch.set_num_threads(1)
DistributionMatching.map_limit= GradientMatching.map_limit = 2**20
r=lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024
def make(classes,n=16,side=32):
    images = ImageSet.of(torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(classes * n, -1, -1, -1), torch.arange(classes).repeat_interleave(n))
    return globals()[sys.argv[1]](ConvNet((3, side, side), classes, 4), "float32", False, images, 1, n)["fast"]
s=make(10); print(r()); s(); print('small', r()); s=make(1000); print('made',r()); s(); print(r()); s(); print(r())
