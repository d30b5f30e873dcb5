"""The recipes that people run with timm and with torchvision, as methods of a learner: `learn.fit_timm(n, lr)` and `learn.fit_torchvision(n, lr, wd=wd)`.

Each mixes with the library's own class, so both libraries have to be installed. What is not theirs is the loop: the data, the model and fastai's
`Learner`, the same for everybody. Both draw one weight for each batch, and both end with a mixed target for each sample."""
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from fastai.basics import Adam,Callback,Learner,patch
from fastai.callback.schedule import ParamScheduler,SchedCos,SchedLin,combine_scheds

class MixTogether(Callback):
    "`mix(x, y)` on each training batch, where fastai's own mixing callbacks do it"
    order,run_valid = 90,False
    def __init__(self, mix): self.mix = mix
    def before_batch(self):
        x,y = self.mix(*(o.as_subclass(torch.Tensor) for o in (self.x,self.y)))
        self.learn.xb,self.learn.yb = (x,),(y,)

@contextmanager
def soft_targets(learn, loss):
    "For a fit: a loss that takes soft targets, and the learner's own one afterwards"
    own,learn.loss_func = learn.loss_func,loss
    try: yield
    finally: learn.loss_func = own

def warm_up_cosine(n_epoch, lr, warm=5, low=1e-5):
    "timm's schedule: a straight line to `lr` in `warm` epochs (a fourth of a short run), then a cosine down to `low`"
    share = min(warm/n_epoch, .25)
    return combine_scheds([share, 1-share], [SchedLin(low, lr), SchedCos(lr, low)])

@patch
def fit_timm(self:Learner, n_epoch, lr, wd=.05, mixup=.8, cutmix=1., smoothing=.1):
    "As the scripts of DeiT and of timm's later recipes train: AdamW, warm-up and cosine, `Mixup` or `CutMix` by batch, smoothed labels"
    from timm.data import Mixup
    mix = MixTogether(Mixup(mixup, cutmix, switch_prob=.5, mode='batch', label_smoothing=smoothing, num_classes=self.dls.c))
    self.opt_func = partial(Adam, sqr_mom=.999, eps=1e-8)    # decays weights apart from the gradient: AdamW, with timm's settings
    with soft_targets(self, F.cross_entropy): self.fit(n_epoch, lr, wd=wd, cbs=[mix, ParamScheduler(dict(lr=warm_up_cosine(n_epoch, lr)))])

@patch
def fit_torchvision(self:Learner, n_epoch, lr, wd=.05, mixup=.2, cutmix=1., smoothing=.1):
    "As torchvision's reference script mixes: `MixUp` or `CutMix` by batch, smoothed labels; one cycle"
    from torchvision.transforms import v2
    mix = v2.RandomChoice([v2.MixUp(alpha=mixup, num_classes=self.dls.c), v2.CutMix(alpha=cutmix, num_classes=self.dls.c)])
    with soft_targets(self, partial(F.cross_entropy, label_smoothing=smoothing)): self.fit_one_cycle(n_epoch, lr, wd=wd, cbs=MixTogether(mix))
