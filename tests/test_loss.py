"Every loss function on mixed targets: contract points 1, 2 and 5."
import copy, pickle, re
from unittest import mock
from dataclasses import dataclass
from functools import partial
import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.losses import *
from hypothesis import given, settings, strategies as st
from timm.loss import AsymmetricLossSingleLabel, BinaryCrossEntropy, PolyCrossEntropy, LabelSmoothingCrossEntropy as TimmLabelSmoothing, SoftTargetCrossEntropy
from torch import nn
from fastmix.crossentropy import *
from fastmix.draw import *
from fastmix.loss import *
from fastmix.lossspec import *
from fastmix.lossspec import KNOWN_LOSSES, _defining_class
from fastmix.plan import Plan
from fastmix.target import *
from fastmix.tensors import per_sample

def words(o):
    "The name of a case, the same in every process"
    return re.sub(" at 0x[0-9a-f]+", "", str(o))

N,C = 9,5
W = torch.tensor([.5,2.,1.,3.,.25])

def no_reduction(pred, targ): return F.cross_entropy(pred, targ)
def summed(pred, targ): return F.cross_entropy(pred, targ, reduction='sum')
def weighted(pred, targ): return F.cross_entropy(pred, targ, weight=W)
class Weighted(nn.Module):
    "A user's own loss: a weighted mean inside, a `reduction` outside"
    reduction = 'mean'
    def forward(self, pred, targ): return F.cross_entropy(pred, targ, weight=W, reduction=self.reduction)

each = dict(mean='mean', sum='sum', none='none')
category = {f'{n}-{r}': partial(f, reduction=r) for r in each for n,f in dict(
    ce_flat=CrossEntropyLossFlat, ce_flat_weights=partial(CrossEntropyLossFlat, weight=W), ce_flat_ignore=partial(CrossEntropyLossFlat, ignore_index=2),
    ce_flat_smooth=partial(CrossEntropyLossFlat, label_smoothing=.1), ce_flat_all=partial(CrossEntropyLossFlat, label_smoothing=.1, weight=W, ignore_index=2),
    ce=nn.CrossEntropyLoss, ce_weights=partial(nn.CrossEntropyLoss, weight=W), ce_smooth=partial(nn.CrossEntropyLoss, label_smoothing=.2),
    nll=nn.NLLLoss, nll_weights=partial(nn.NLLLoss, weight=W), ls=LabelSmoothingCrossEntropy, ls_weights=partial(LabelSmoothingCrossEntropy, weight=W),
    ls_flat=LabelSmoothingCrossEntropyFlat, focal=FocalLoss, focal_weights=partial(FocalLoss, weight=W), focal_flat=FocalLossFlat,
    timm_bce=BinaryCrossEntropy).items()}
category |= dict(f_ce=lambda: F.cross_entropy, f_ce_partial=lambda: partial(F.cross_entropy, weight=W, ignore_index=1), f_nll=lambda: F.nll_loss,
    a_lambda=lambda: (lambda p,t: F.cross_entropy(p,t)), no_reduction=lambda: no_reduction, summed=lambda: summed, weighted=lambda: weighted, user=Weighted,
    timm_ls=TimmLabelSmoothing, timm_bce_sum=partial(BinaryCrossEntropy, sum_classes=True), timm_bce_threshold=partial(BinaryCrossEntropy, target_threshold=.5))
number = {f'{n}-{r}': partial(f, reduction=r) for r in each for n,f in dict(
    bce_flat=BCEWithLogitsLossFlat, bce_flat_pos=partial(BCEWithLogitsLossFlat, pos_weight=W), bce=nn.BCEWithLogitsLoss, bce_pos=partial(nn.BCEWithLogitsLoss, pos_weight=W),
    mse_flat=MSELossFlat, mse=nn.MSELoss, l1_flat=L1LossFlat, l1=nn.L1Loss, huber=nn.HuberLoss).items()}
number |= dict(soft_ce=lambda: nn.CrossEntropyLoss(), soft_timm=SoftTargetCrossEntropy, soft_ce_weights=lambda: nn.CrossEntropyLoss(weight=W), timm_bce=BinaryCrossEntropy,
               a_lambda=lambda: (lambda p,t: ((p-t)**2).mean()), f_mse=lambda: F.mse_loss)

def data(kind):
    g = torch.Generator().manual_seed(0)
    pred = torch.randn(N, C, generator=g)
    y = torch.randint(0, C, (N,), generator=g)
    if kind=='continuous':
        y = torch.rand(N, C, generator=g); y = y/y.sum(1, keepdim=True)
    if kind=='multi': y = (torch.rand(N, C, generator=g)>.5)
    return pred.requires_grad_(), y

def both(f, *args):
    "Value and gradient of `f(pred, …)`, reduced by a fixed weighted sum where `f` does not reduce"
    pred = args[0].detach().clone().requires_grad_()
    l = f(pred, *args[1:])
    l = l.as_subclass(torch.Tensor)
    s = (l*torch.linspace(.5, 1.5, l.numel()).view(l.shape)).sum() if l.ndim else l
    s.backward()
    return l.detach(), pred.grad

def same(a, b, eps=1e-6):
    for o,p in zip(a,b): torch.testing.assert_close(o, p, rtol=eps, atol=eps)

@dataclass
class Times:
    "Cannot be hashed, as a dataclass"
    k:float
    def __call__(self, p, t): return self.k*F.cross_entropy(p, t)

def plan_of(lam, mode='elem'): return Plan(N, lam, lam, partner=2, per_batch=mode=='batch')
ones = np.ones(N, np.float32)
lams = {'elem': np.linspace(.5, 1, N, dtype=np.float32), 'batch': np.full(N, .7, np.float32)}
def mixed_of(y, plan, loss=None): return mix_one_hot(y, plan, C) if target_kind(y)=='category' else mix_continuous(y, plan)
def log_softmax_first(name, f): return (lambda p,*t: f(F.log_softmax(p,1), *t)) if 'nll' in name else f

cases = [pytest.param('category', n, f, id=f'category-{n}') for n,f in category.items()] + [pytest.param('continuous', n, f, id=f'continuous-{n}') for n,f in number.items()]
cases += [pytest.param('multi', n, f, id=f'multi-{n}') for n,f in number.items() if n.startswith('bce_flat')]

@pytest.mark.parametrize('kind,name,f', cases)
@pytest.mark.parametrize('mode', ['elem','batch'])
def test_weights_1_equal_plain_training(kind, name, f, mode):
    f = f(); pred,y = data(kind)
    plan = plan_of(ones, mode); mixed = mixed_of(y, plan)
    loss = MixedLoss(f, (y,), plan, (mixed,))
    same(both(log_softmax_first(name, lambda p,t: loss(p, t)), pred, mixed), both(log_softmax_first(name, lambda p,t: f(p, t)), pred, y))

def unreduced(f, pred, y):
    "Loss of each sample, (N,), from the user's own function"
    if isinstance(f, partial): return partial(f, reduction='none')(pred, y)
    if hasattr(f, 'reduction'):
        f = copy.deepcopy(f); f.reduction = 'none'
        return f(pred, y)
    return torch.stack([f(pred[i:i+1], y[i:i+1]) for i in range(N)])

@pytest.mark.parametrize('kind,name,f', cases)
def test_two_losses_for_each_sample(kind, name, f):
    "`lam*L(y) + (1-lam)*L(y[idx])` per sample, with one weight for all: any loss, any reduction"
    f = f(); pred,y = data(kind)
    plan = plan_of(lams['batch'], 'batch'); mixed,lam = mixed_of(y, plan),.7
    loss = MixedLoss(f, (y,), plan, (mixed,), interpolate_loss=True if loss_spec(f).regression else None)
    want = both(log_softmax_first(name, lambda p: lam*f(p, y) + (1-lam)*f(p, plan.partners_of(y))), pred)
    got = both(log_softmax_first(name, lambda p: loss(p, mixed)), pred)
    same(got, want, 1e-5)

plain_mean = [p for p in cases if not any(o in p.id for o in ('weight','ignore','all','partial','user','sum','none','nll_w','pos'))]
@pytest.mark.parametrize('kind,name,f', plain_mean)
def test_a_weight_for_each_sample(kind, name, f):
    f = f(); pred,y = data(kind)
    plan = plan_of(lams['elem']); mixed,lam = mixed_of(y, plan),torch.tensor(plan.lam)
    loss = MixedLoss(f, (y,), plan, (mixed,), interpolate_loss=True if loss_spec(f).regression else None)
    def two(p):
        a,b = (unreduced(f, p, t).reshape(N,-1).mean(1) for t in (y,plan.partners_of(y)))
        return (lam*a + (1-lam)*b).mean()
    same(both(log_softmax_first(name, lambda p: loss(p, mixed)), pred), both(log_softmax_first(name, two), pred), 1e-5)

linear = [p for p in cases if (spec := loss_spec(p.values[2]())).linear or spec.ce is not None]
@pytest.mark.parametrize('kind,name,f', linear)
def test_linear_losses_mixed_target_equals_two_losses(kind, name, f):
    f = f(); pred,y = data(kind)
    plan = plan_of(lams['elem']); mixed = mixed_of(y, plan)
    if 'timm_bce' in name and kind=='category': f.smoothing = 0.  # timm smooths whole-number targets only
    one,two = (MixedLoss(f, (y,), plan, (mixed,), interpolate_loss=i) for i in (False,True))
    same(both(log_softmax_first(name, lambda p: one(p, mixed)), pred), both(log_softmax_first(name, lambda p: two(p, mixed)), pred), 2e-6)

@pytest.mark.parametrize('f', [CrossEntropyLossFlat(), nn.CrossEntropyLoss(), F.cross_entropy, no_reduction], ids=loss_name)
def test_cross_entropy_is_pytorchs_on_the_mixed_one_hot(f):
    pred,y = data('category'); plan = plan_of(lams['elem']); mixed = mix_one_hot(y, plan, C)
    same(both(MixedLoss(f, (y,), plan, (mixed,)), pred, mixed), both(F.cross_entropy, pred, mixed))

def test_label_smoothing_is_pytorchs():
    pred,y = data('category'); plan = plan_of(lams['elem']); mixed = mix_one_hot(y, plan, C, .1)
    same(both(MixedLoss(CrossEntropyLossFlat(), (y,), plan, (mixed,), label_smoothing=.1), pred, mixed),
         both(partial(F.cross_entropy, label_smoothing=.1), pred, mix_one_hot(y, plan, C)))

def test_weighted_mean_counts_both_labels():
    "Class weights with a weight for each sample: a mean over the weight of what was mixed"
    pred,y = data('category'); plan = plan_of(lams['elem']); y1,lam = plan.partners_of(y),torch.tensor(plan.lam)
    l,l1 = (F.cross_entropy(pred, t, weight=W, reduction='none') for t in (y,y1))
    want = (lam*l+(1-lam)*l1).sum() / (lam*W[y]+(1-lam)*W[y1]).sum()
    for f in (nn.CrossEntropyLoss(weight=W), CrossEntropyLossFlat(weight=W), partial(F.cross_entropy, weight=W)):
        mixed = mix_one_hot(y, plan, C)
        for t in (mixed, mixed.clone()):     # ours, and one that another callback has made anew
            torch.testing.assert_close(MixedLoss(f, (y,), plan, (mixed,))(pred, t), want)

@pytest.mark.parametrize('smooth', [0., .1])
@pytest.mark.parametrize('weight', [None, W])
def test_masks_per_pixel(smooth, weight):
    pred,y = torch.randn(N,C,4,3),torch.randint(0,C,(N,4,3)); y[0,0] = 255
    plan = plan_of(lams['batch'], 'batch'); y1 = plan.partners_of(y)
    for f in (CrossEntropyLossFlat(axis=1, ignore_index=255, weight=weight, label_smoothing=smooth), nn.CrossEntropyLoss(ignore_index=255, weight=weight, label_smoothing=smooth)):
        same(both(lambda p: MixedLoss(f, (y,), plan, (y,))(p, y), pred), both(lambda p: .7*f(p,y)+.3*f(p,y1), pred), 1e-5)
    y = y.clamp(max=C-1)
    f = DiceLoss()
    for r in ('sum','mean','none'):
        f = DiceLoss(reduction=r)
        same(both(lambda p: MixedLoss(f, (y,), plan, (y,))(p, y), pred), both(lambda p: .7*f(p,y)+.3*f(p,plan.partners_of(y)), pred), 1e-5)
        same(both(lambda p: MixedLoss(f, (y,), plan_of(ones), (y,))(p, y), pred), both(f, pred, y))

def test_binary_labels():
    "One column of logits, labels 0 and 1, whole or float, with and without a column axis"
    y = torch.randint(0, 2, (N,)); pred = torch.randn(N,1); plan = plan_of(lams['elem'])
    want = F.binary_cross_entropy_with_logits(pred.view(-1), mix_continuous(y, plan))
    f = BCEWithLogitsLossFlat()
    for t in (y, y.float(), y.float()[:,None]):
        mixed = mixed_of(t, plan)
        torch.testing.assert_close(MixedLoss(f, (t,), plan, (mixed,))(pred, mixed).as_subclass(torch.Tensor), want)

def test_single_labels_as_one_hot_for_bce():
    "Whole-number labels and as many logits as classes: the mixed one-hot target, as in timm's recipes"
    pred,y = data('category'); plan = plan_of(lams['elem']); mixed = mix_one_hot(y, plan, C)
    for f in (BCEWithLogitsLossFlat(), nn.BCEWithLogitsLoss()):
        torch.testing.assert_close(MixedLoss(f, (y,), plan, (mixed,))(pred, mixed).as_subclass(torch.Tensor), F.binary_cross_entropy_with_logits(pred, mixed))

def test_refused_by_name():
    pred,y = data('category'); plan = plan_of(lams['elem']); mixed = mix_one_hot(y, plan, C)
    with pytest.raises(ValueError, match='FocalLossFlat cannot take soft targets.*interpolate_loss'): MixedLoss(FocalLossFlat(), (y,), plan, (mixed,), interpolate_loss=False)(pred, mixed)
    def host(p,t): return F.cross_entropy(p,t) * p.max().item()
    with pytest.raises(ValueError, match="host gives one number.*mode='batch'"): MixedLoss(host, (y,), plan, (mixed,))(pred, mixed)
    plan = plan_of(lams['batch'], 'batch')
    torch.testing.assert_close(MixedLoss(host, (y,), plan, (mixed,))(pred, mixed), .7*host(pred,y)+.3*host(pred,plan.partners_of(y)))

def test_changed_targets_are_taken_at_face_value():
    "Another callback may change the mixed targets after us"
    pred,y = data('category'); plan = plan_of(lams['elem']); mixed = mix_one_hot(y, plan, C)
    loss = MixedLoss(nn.CrossEntropyLoss(), (y,), plan, (mixed,))
    torch.testing.assert_close(loss(pred, mixed.flip(1).contiguous()), F.cross_entropy(pred, mixed.flip(1)))
    torch.testing.assert_close(loss(pred, mixed.as_subclass(torch.Tensor)), F.cross_entropy(pred, mixed))

def test_the_users_loss_is_left_alone():
    "Its reduction is given back, also when it raises"
    class Bad(nn.Module):
        reduction = 'mean'
        def forward(self, p, t): raise RuntimeError('no')
    pred,y = data('category'); plan = plan_of(lams['elem']); mixed = mix_one_hot(y, plan, C)
    f = Bad()
    with pytest.raises(RuntimeError): MixedLoss(f, (y,), plan, (mixed,))(pred, mixed)
    assert f.reduction=='mean'

def test_passes_for_the_users_loss():
    f = CrossEntropyLossFlat(weight=W); loss = MixedLoss(f, *[()]*1)
    assert loss.reduction=='mean' and loss.axis==-1
    loss.reduction = 'sum'; assert f.reduction=='sum'; loss.reduction = 'mean'
    loss.to('cpu')
    for o in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss), copy.copy(loss)):
        pred,y = data('category'); torch.testing.assert_close(o(pred, y), f(pred, y))
    assert not hasattr(MixedLoss(F.cross_entropy), 'activation')

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    pred,y = data('category'); plan = plan_of(lams['elem']); mixed = mix_one_hot(y, plan, C)
    l = MixedLoss(CrossEntropyLossFlat(), (y,), plan, (mixed,))(pred.to(dtype), mixed)
    assert l.dtype==dtype
    torch.testing.assert_close(l.float().as_subclass(torch.Tensor), F.cross_entropy(pred, mixed), rtol=2e-2, atol=2e-2)

@pytest.mark.parametrize('shape', [(6,1), (6,), (6,1,2,3), (6,2,3)], ids=words)
def test_targets_with_a_dimension_to_spare(shape):
    "Targets `(n,1)`, which tables have: each sample keeps its own weight"
    torch.manual_seed(0)
    pred,y = torch.randn(6,4,*shape[2:] if shape[1:2]==(1,) else shape[1:]),torch.randint(0,4,shape)
    plan = draw_mixup(make_rng(0), 6)
    bare = y.reshape(pred.shape[:1]+pred.shape[2:])
    f = torch.nn.CrossEntropyLoss(reduction='none')
    lam = torch.from_numpy(plan.lam).view(-1, *[1]*(bare.ndim-1))
    want = (lam*f(pred, bare) + (1-lam)*f(pred, plan.partners_of(bare))).mean()
    got = mixed_cross_entropy(pred, y, plan.partners_of(y), per_sample(plan.lam, y), loss_spec(torch.nn.CrossEntropyLoss()).ce)
    torch.testing.assert_close(got, want)

# --- what a loss is

everything = {**category, **number}
def test_every_loss_of_the_table_is_tried():
    "The sweeps above reach each row of `KNOWN_LOSSES`"
    def row(f): return _defining_class(loss_spec(f).inner, 'forward' if hasattr(loss_spec(f).inner, 'forward') else '__call__')
    seen = {row(f()) for f in [*everything.values(), *more_known.values()]}
    assert set(KNOWN_LOSSES) <= seen, set(KNOWN_LOSSES)-seen

@pytest.mark.parametrize('f,name,traits', [
    (CrossEntropyLossFlat(), 'CrossEntropyLossFlat', 'linear'), (partial(F.cross_entropy, weight=W), 'cross_entropy', 'linear'), (FocalLossFlat(), 'FocalLossFlat', 'plain_mean'),
    (partial(F.huber_loss, delta=2.), 'huber_loss', 'regression numeric plain_mean'), (BaseLoss(nn.SmoothL1Loss, floatify=True), 'BaseLoss', 'regression numeric plain_mean'),
    (SoftTargetCrossEntropy(), 'SoftTargetCrossEntropy', 'linear soft_only'), (BinaryCrossEntropy(target_threshold=.5), 'BinaryCrossEntropy', 'plain_mean'),
    (torch.compile(nn.L1Loss(), backend='eager'), 'L1Loss', 'regression numeric plain_mean'), (torch.compile(F.mse_loss, backend='eager'), 'mse_loss', 'regression numeric plain_mean'),
    (no_reduction, 'no_reduction', ''), (Weighted(), 'Weighted', ''), (partial(F.mse_loss, torch.zeros(1)), 'mse_loss', '')],
    ids=words)
def test_what_a_loss_is(f, name, traits):
    spec = loss_spec(f)
    assert spec.name==name
    assert {t for t in 'linear regression soft_only numeric plain_mean'.split() if getattr(spec, t)}==set(traits.split())

def test_a_subclass_that_computes_its_own_is_not_its_parent():
    class Scaled(nn.MSELoss):
        def forward(self, p, t): return 2*super().forward(p, t)
    class Named(nn.MSELoss): pass
    assert not loss_spec(Scaled()).known and not loss_spec(Scaled()).regression and loss_spec(Named()).regression
    patched = nn.MSELoss(); patched.forward = lambda p,t: (p-t).abs().mean()
    assert not loss_spec(patched).known

def test_settings_are_read_when_asked():
    "A callback that changes the class weights or the smoothing in the middle of a run is heard"
    f = CrossEntropyLossFlat(); spec = loss_spec(f)
    pred,y = data('category'); plan = plan_of(lams['elem']); mixed = mix_one_hot(y, plan, C)
    f.func.weight,f.func.label_smoothing = W,.1
    torch.testing.assert_close(MixedLoss(f, (y,), plan, (mixed,), spec=spec)(pred, mixed), MixedLoss(nn.CrossEntropyLoss(weight=W, label_smoothing=.1), (y,), plan, (mixed,))(pred, mixed))
    assert spec.smoothing==.1
    focal = FocalLossFlat(); spec = loss_spec(focal)
    focal.func.weight,focal.reduction = W,'sum'
    got,want = (MixedLoss(o, (y,), plan, (mixed,), spec=s)(pred, mixed) for o,s in ((focal,spec),(FocalLossFlat(weight=W, reduction='sum'),None)))
    torch.testing.assert_close(got, want)

def test_a_spec_of_another_loss_is_not_used():
    pred,y = data('category'); plan = plan_of(lams['elem']); mixed = mix_one_hot(y, plan, C)
    got = MixedLoss(F.cross_entropy, (y,), plan, (mixed,), spec=loss_spec(nn.MSELoss()))(pred, mixed)
    torch.testing.assert_close(got, F.cross_entropy(pred, mixed))

def test_known_losses_are_never_written_to():
    "Their `reduction` is asked of a copy, so that another thread, or an error, finds the user's as it was"
    seen = []
    class Spy(FocalLoss):
        def __setattr__(self, k, v):
            if k=='reduction' and 'ready' in self.__dict__: seen.append(v)
            super().__setattr__(k, v)
    f = Spy(); f.ready = True
    pred,y = data('category'); plan = plan_of(lams['elem']); mixed = mix_one_hot(y, plan, C)
    MixedLoss(f, (y,), plan, (mixed,))(pred, mixed)
    assert f.reduction=='mean' and set(seen)=={'none'}    # by copies, whose `ready` came with them

# --- regression: the blended target

regressions = dict(mse=nn.MSELoss, l1=nn.L1Loss, smooth_l1=partial(nn.SmoothL1Loss, beta=.3), huber=partial(nn.HuberLoss, delta=.5), mse_sum=partial(nn.MSELoss, reduction='sum'),
    l1_none=partial(nn.L1Loss, reduction='none'), mse_flat=MSELossFlat, l1_flat=L1LossFlat, huber_flat=lambda: BaseLoss(nn.HuberLoss, floatify=True, is_2d=False),
    f_mse=lambda: F.mse_loss, f_l1=lambda: F.l1_loss, f_smooth_l1=lambda: F.smooth_l1_loss, f_huber=lambda: F.huber_loss, partial_huber=lambda: partial(F.huber_loss, delta=.2),
    partial_mse=lambda: partial(F.mse_loss, reduction='sum'), compiled=lambda: torch.compile(F.l1_loss, backend='eager'), compiled_module=lambda: torch.compile(nn.SmoothL1Loss(), backend='eager'))

@pytest.mark.parametrize('name', regressions)
@pytest.mark.parametrize('mode', ['elem','batch'])
def test_regression_takes_the_blended_target(name, mode):
    f,(pred,y) = regressions[name](),data('continuous')
    plan = plan_of(lams[mode], mode); mixed = mix_continuous(y, plan)
    same(both(MixedLoss(f, (y,), plan, (mixed,)), pred, mixed), both(f, pred, mixed))
    assert MixedLoss(f, (y,), plan, (mixed,))(mixed.clone(), mixed).abs().max()==0                      # whoever predicts the blend is right
    two = MixedLoss(f, (y,), plan, (mixed,), interpolate_loss=True)
    assert two(mixed.clone(), mixed).max()>0
    if mode=='batch': same(both(two, pred, mixed), both(lambda p,t: .7*f(p,y) + .3*f(p,plan.partners_of(y)), pred, mixed), 1e-5)

def test_whole_numbers_to_be_predicted():
    "Categories for a regression loss: one column compares with the blended number, as many columns as classes with the blended rows"
    _,y = data('category'); plan = plan_of(lams['elem']); rows,number = mix_one_hot(y, plan, C),mix_continuous(y, plan)
    column,wide = torch.randn(N),torch.randn(N,C)
    for f in (nn.MSELoss(), MSELossFlat(), F.l1_loss):
        torch.testing.assert_close(torch.as_tensor(MixedLoss(f, (y,), plan, (rows,))(column, rows)), torch.as_tensor(f(column, number)))
        torch.testing.assert_close(torch.as_tensor(MixedLoss(f, (y,), plan, (rows,))(wide, rows)), torch.as_tensor(f(wide, rows)))

def test_smoothing_of_one_column():
    y,pred = torch.randint(0, 2, (N,)),torch.randn(N,1); plan = plan_of(lams['elem']); rows = mix_one_hot(y, plan, 2, .2)
    torch.testing.assert_close(MixedLoss(nn.BCEWithLogitsLoss(), (y,), plan, (rows,), .2)(pred, rows), F.binary_cross_entropy_with_logits(pred[:,0], .8*mix_continuous(y, plan)+.1))

# --- losses over the batch

def correlation(p, t):
    a,b = p[:,0]-p[:,0].mean(),t[:,0]-t[:,0].mean()
    return 1 - (a*b).sum()/(a.norm()*b.norm())
def info_nce(p, t): return F.cross_entropy(F.normalize(p) @ F.normalize(t).T, torch.arange(len(p)))
def pairs(p, t):
    "One minus the area under the curve, softly"
    d,w = p[:,:1]-p[:,0],(t[:,:1]>t[:,0]).float()
    return (F.relu(1-d)*w).sum() / w.sum().clamp(min=1)
def rmse(p, t): return F.mse_loss(p, t).sqrt()
def spread(p, t): return (p-t).abs().mean() + (p-t).std()
def weighted_mean(p, t): w = t.sum(1)*torch.arange(len(t)); return (w*(p-t).pow(2).mean(1)).sum()/w.sum()
class InfoNCE(nn.Module):
    "With a `reduction`, and a value for each row that depends on the others"
    def __init__(self): super().__init__(); self.reduction = 'mean'
    def forward(self, p, t): return F.cross_entropy(p @ t.T, torch.arange(len(p)), reduction=self.reduction)
class Centred(nn.Module):
    "Normalises over the batch as it goes: no single sample can pass"
    def __init__(self): super().__init__(); self.norm = nn.BatchNorm1d(C, affine=False)
    def forward(self, p, t): return F.mse_loss(self.norm(p), t)
class DiceOfBatch(nn.Module):
    "A value for each class, of all samples together"
    def __init__(self): super().__init__(); self.reduction = 'mean'
    def forward(self, p, t):
        l = 1 - 2*(p.sigmoid()*t).sum(0)/(p.sigmoid()+t).sum(0)
        return l.mean() if self.reduction=='mean' else l
class Masked(nn.Module):
    "Leaves out what is not marked"
    def __init__(self, above=.15): super().__init__(); self.reduction,self.above = 'mean',above
    def forward(self, p, t): keep = t>self.above; return F.mse_loss(p[keep], t[keep], reduction=self.reduction)
over_the_batch = dict(correlation=lambda: correlation, info_nce=lambda: info_nce, pairs=lambda: pairs, rmse=lambda: rmse, spread=lambda: spread, weighted_mean=lambda: weighted_mean,
                      class_info_nce=InfoNCE, centred=Centred, dice=DiceOfBatch, masked=Masked)
def batch_loss(f, plan, **kw):
    pred,y = data('continuous'); mixed = mix_continuous(y, plan)
    return MixedLoss(f, (y,), plan, (mixed,), **kw),pred,y,mixed

@pytest.mark.parametrize('name', over_the_batch)
def test_a_loss_over_the_batch_is_refused(name):
    "By name, in the first batch and in all that follow"
    f = over_the_batch[name](); spec = loss_spec(f)
    for _ in range(2):
        loss,pred,_,mixed = batch_loss(f, plan_of(lams['elem']), spec=spec)
        with pytest.raises(ValueError, match=rf"{spec.name} gives .*samples cannot have weights of their own: use mode='batch', or interpolate_loss=False"): loss(pred, mixed)

@pytest.mark.parametrize('name', over_the_batch)
@pytest.mark.parametrize('lam', [.7, 1., 0.])
@pytest.mark.parametrize('mode', ['batch','elem'])
def test_a_loss_over_the_batch_with_one_weight(name, lam, mode):
    "Exact, also where a mode that draws a weight for each sample happens to give all the same one"
    f = over_the_batch[name](); f = f.eval() if isinstance(f, nn.Module) else f
    plan = plan_of(np.full(N, lam, np.float32), mode)
    loss,pred,y,mixed = batch_loss(f, plan)
    y1 = plan.partners_of(y)
    same(both(loss, pred, mixed), both(lambda p,t: f(p,y) if lam==1 else f(p,y1) if lam==0 else lam*f(p,y) + (1-lam)*f(p,y1), pred, mixed))

@pytest.mark.parametrize('name', over_the_batch)
def test_a_batch_of_one(name):
    f = over_the_batch[name](); f = f.eval() if isinstance(f, nn.Module) else f
    pred,y = data('continuous'); pred,y = pred[:1],y[:1]
    plan = Plan(1, *[np.full(1, .6, np.float32)]*2, partner=0)
    torch.testing.assert_close(MixedLoss(f, (y,), plan, (y.clone(),))(pred, y.clone()), f(pred, y), equal_nan=True)
    mixed = y.clone()
    torch.testing.assert_close(MixedLoss(f, (y,), plan, (mixed,))(pred, mixed), f(pred, y), equal_nan=True)

class NoSync(torch.utils._python_dispatch.TorchDispatchMode):
    "What would make the host wait for a device is an error"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ('_local_scalar_dense','item','nonzero','masked_select','is_nonzero','equal'), func
        return func(*args, **(kwargs or {}))

class Calls:
    def __init__(self, f): self.f,self.n = f,0
    def __call__(self, *args): self.n += 1; return self.f(*args)
    def __deepcopy__(self, memo): return self
@pytest.mark.parametrize('f', [lambda p,t: F.cosine_similarity(p, t).mean(), lambda p,t: ((p-t)**2).sum(), lambda p,t: (p-t).abs().mean(1), Weighted()], ids=['mean','sum','each','reduction'])
def test_looked_at_once(f):
    "An unknown loss is looked at in its first mixed batch, and never again"
    calls = f if hasattr(f, 'reduction') else Calls(f)
    spec,n = loss_spec(calls),[]
    for i in range(4):
        pred,y = data('category' if isinstance(f, Weighted) else 'continuous'); plan = plan_of(lams['elem']); mixed = mixed_of(y, plan)
        loss = MixedLoss(calls, (y,), plan, (mixed,), spec=spec)
        if i==0: first = loss(pred, mixed)
        else:
            with mock.patch('fastmix.loss._find_form', side_effect=AssertionError('again')), NoSync():
                later = loss(pred, mixed)
            torch.testing.assert_close(later, first)
        n.append(getattr(calls, 'n', 0))
    assert np.diff(n).max() <= 2

def test_the_look_leaves_no_trace():
    "Neither in the state of the loss nor in torch's generator"
    class Counting(nn.Module):
        reduction = 'mean'
        def __init__(self): super().__init__(); self.register_buffer('seen', torch.zeros(())); self.n = 0
        def forward(self, p, t): self.seen += 1; self.n += 1; torch.rand(3); return F.mse_loss(p, t, reduction=self.reduction)
    f = Counting(); spec = loss_spec(f); counts,states = [],[]
    for _ in range(3):
        torch.manual_seed(0); loss,pred,_,mixed = batch_loss(f, plan_of(lams['elem']), spec=spec)
        before = f.n; torch.manual_seed(0); loss(pred, mixed); counts.append(f.n-before); states.append(torch.random.get_rng_state())
    assert len(set(counts))==1 and f.seen==f.n
    assert all(torch.equal(o, states[0]) for o in states)

def test_a_batch_that_cannot_tell():
    "All losses 0: the next batch is asked"
    pred,y = data('continuous'); plan = plan_of(lams['elem']); spec = loss_spec(f := lambda p,t: F.relu(p-t).mean())
    low = (pred-100).detach().requires_grad_(); mixed = mix_continuous(y, plan)
    assert MixedLoss(f, (y,), plan, (mixed,), spec=spec)(low, mixed)==0 and 'form' not in spec.found
    MixedLoss(f, (y,), plan, (mixed,), spec=spec)(pred, mixed)
    assert spec.found['form']==('mean',None)

def test_a_mask_that_comes_later():
    "The first batch leaves nothing out; a later one does"
    f = Masked(0.); spec = loss_spec(f); plan = plan_of(lams['elem'])
    pred,y = data('continuous'); mixed = mix_continuous(y, plan)
    MixedLoss(f, (y,), plan, (mixed,), interpolate_loss=True, spec=spec)(pred, mixed)
    y = y.clone(); y[:3,:3] = 0; mixed = mix_continuous(y, plan)               # 36 of 45 values: 4 for each of 9 samples, were they in order
    assert (y>0).sum()%N==0
    with pytest.raises(ValueError, match="Masked gives 36 values for 9 samples, not 45.*mode='batch'"): MixedLoss(f, (y,), plan, (mixed,), interpolate_loss=True, spec=spec)(pred, mixed)

def test_longer_texts_are_no_mask():
    class Tokens(nn.Module):
        reduction = 'mean'
        def forward(self, p, t): return F.cross_entropy(p.transpose(1,2), t, reduction=self.reduction)
    f = Tokens(); spec = loss_spec(f); plan = plan_of(lams['elem']); lam = torch.tensor(plan.lam)
    for length in (4,7,3):
        pred,y = torch.randn(N,length,C),torch.randint(0,C,(N,length))
        a,b = (F.cross_entropy(pred.transpose(1,2), t, reduction='none').mean(1) for t in (y,plan.partners_of(y)))
        torch.testing.assert_close(MixedLoss(f, (y,), plan, (y,), spec=spec)(pred, y), (lam*a+(1-lam)*b).mean())

def test_several_values_are_refused():
    f = lambda p,t: (F.cross_entropy(p,t), {'part':0})
    pred,y = data('category')
    for mode in ('elem','batch'):
        plan = plan_of(lams[mode], mode); mixed = mix_one_hot(y, plan, C)
        with pytest.raises(TypeError, match='returns a tuple'): MixedLoss(f, (y,), plan, (mixed,))(pred, mixed)

def test_a_reduction_that_cannot_be_set():
    "TorchScript, or a property: the losses of single samples are taken"
    pred,y = data('category'); plan = plan_of(lams['elem']); mixed = mix_one_hot(y, plan, C)
    class Fixed(nn.Module):
        reduction = property(lambda self: 'mean')
        def forward(self, p, t): return F.cross_entropy(p, t)
    for f in (Fixed(), torch.jit.script(nn.CrossEntropyLoss())):
        torch.testing.assert_close(MixedLoss(f, (y,), plan, (mixed,))(pred, mixed), F.cross_entropy(pred, mixed))

@pytest.mark.parametrize('make', [AsymmetricLossSingleLabel, PolyCrossEntropy, lambda: torch.compile(lambda p,t: 2*F.cross_entropy(p,t), backend='eager'),
    lambda: Times(2.), lambda: Times(2.).__call__, lambda: partial(F.multi_margin_loss, p=1)], ids=['asymmetric','poly','compiled','dataclass','method','margin'])
def test_losses_from_elsewhere(make):
    "The mean of the samples' losses, each with its own weight"
    f = make(); pred,y = data('category'); plan = plan_of(lams['elem']); mixed,lam = mix_one_hot(y, plan, C),torch.tensor(plan.lam)
    a,b = (torch.stack([f(pred[i:i+1], t[i:i+1]) for i in range(N)]) for t in (y,plan.partners_of(y)))
    torch.testing.assert_close(MixedLoss(f, (y,), plan, (mixed,))(pred, mixed), (lam*a+(1-lam)*b).mean(), rtol=1e-4, atol=1e-5)

def test_a_loss_with_parameters():
    "Their gradients are mixed as well"
    class Margin(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.linspace(-1,1,C*C).view(C,C))
        def forward(self, p, t): return F.cross_entropy(F.normalize(p) @ F.normalize(self.w), t)
    f = Margin(); pred,y = data('category'); plan = plan_of(lams['elem']); mixed = mix_one_hot(y, plan, C)
    loss = MixedLoss(f, (y,), plan, (mixed,))(pred, mixed)
    want = F.cross_entropy(F.normalize(pred) @ F.normalize(f.w), mixed)
    torch.testing.assert_close(loss, want)
    for a,b in zip(torch.autograd.grad(loss, (pred,f.w), retain_graph=True), torch.autograd.grad(want, (pred,f.w))): torch.testing.assert_close(a, b)

# --- what has no weight stays out

def last_is_nan(y): y = y.clone(); y[-1] = float('nan'); return y
@pytest.mark.parametrize('f', [*map(partial, [nn.MSELoss, nn.L1Loss, MSELossFlat, nn.BCEWithLogitsLoss]), lambda: F.huber_loss, lambda: (lambda p,t: ((p-t)**2).mean()),
                               lambda: (lambda p,t: (p-t).abs().mean(1))], ids=words)
@pytest.mark.parametrize('force', [None,True])
def test_a_nan_without_weight_reaches_nothing(f, force):
    "The last sample's target is missing; whoever has it as a partner, and itself, give it no weight"
    f,(pred,y) = f(),data('continuous')
    lam = lams['elem'].copy(); plan = plan_of(lam)
    lam[plan.idx==N-1],lam[N-1] = 1,0
    plan = plan_of(lam); y = last_is_nan(y); mixed = mix_continuous(y, plan)
    l,g = both(MixedLoss(f, (y,), plan, (mixed,), interpolate_loss=force), pred, mixed)
    clean = torch.where(y.isnan(), 7., y); mixed = mix_continuous(clean, plan)
    same((l,g), both(MixedLoss(f, (clean,), plan, (mixed,), interpolate_loss=force), pred, mixed))

def test_a_class_that_is_ruled_out():
    "A logit of minus infinity for a label without weight"
    pred,y = data('category'); lam = np.ones(N, np.float32); lam[0] = .6
    plan = plan_of(lam); y1 = plan.partners_of(y)
    p = pred.detach().clone()
    for i in range(1,N):
        for c in range(C):
            if c!=y[i]: p[i,c] = -float('inf') if c==y1[i] or c==0 else p[i,c]
    mixed = mix_one_hot(y, plan, C)
    want = (.6*F.cross_entropy(p[:1], y[:1]) + .4*F.cross_entropy(p[:1], y1[:1]) + F.cross_entropy(p[1:], y[1:], reduction='sum'))/N
    for f in (nn.CrossEntropyLoss(), FocalLoss(gamma=0.), lambda p,t: F.cross_entropy(p,t)):
        l,g = both(MixedLoss(f, (y,), plan, (mixed,)), p, mixed)
        torch.testing.assert_close(l, want); assert g.isfinite().all()

def test_ignored_labels_in_a_function():
    "A sample whose label is ignored counts for nothing, in value and gradient"
    pred,y = data('category'); y[2] = y[5] = -100; plan = plan_of(lams['elem']); mixed = mix_one_hot(y, plan, C)
    got,want = (both(MixedLoss(f, (y,), plan, (mixed,)), pred, mixed) for f in (lambda p,t: F.cross_entropy(p,t), F.cross_entropy))
    same(got, want)
    own = plan_of(ones)
    same(both(MixedLoss(lambda p,t: F.cross_entropy(p,t), (y,), own, (mixed,)), pred, mixed), both(F.cross_entropy, pred, y))

# --- targets that are no tensors, and life outside of training

def test_targets_that_are_no_tensors():
    pred,y = data('category'); names = [f'n{i}' for i in range(N)]; plan = plan_of(lams['elem']); mixed = mix_one_hot(y, plan, C)
    def f(p, t, names): assert len(names)==N; return F.cross_entropy(p, t)
    torch.testing.assert_close(MixedLoss(f, (y,names), plan, (mixed,names))(pred, mixed, names), F.cross_entropy(pred, mixed))

def test_outside_of_training_it_is_the_users_loss():
    y = torch.randint(0, C, (N,4)); pred = torch.randn(N,C,4,requires_grad=True); plan = plan_of(lams['elem'])
    f = nn.CrossEntropyLoss(weight=W); loss = MixedLoss(f, (y,), plan, (y,))
    assert loss(pred, y)!=f(pred, y)                          # in training; a mask that MixUp mixes is the same object before and after
    with torch.no_grad(): assert loss(pred.detach(), y)==f(pred, y)
    soft = torch.rand(N,C,4)
    with torch.no_grad(): assert loss(pred.detach(), soft)==f(pred, soft)
    assert loss(pred, y.clone())==f(pred, y)                   # other labels than the batch's
    with pytest.raises(IndexError): loss(pred, y.clone()+C)   # with the loss's own error

def test_a_wrapper_is_not_wrapped_twice():
    f = nn.CrossEntropyLoss(); assert MixedLoss(MixedLoss(f)).loss_func is f

# --- interpolate_loss

def test_false_is_an_order():
    "The loss gets the mixed targets, several of them too; a mask has none"
    pred,y = data('category'); plan = plan_of(lams['elem']); mixed,number = mix_one_hot(y, plan, C),mix_continuous(y.float(), plan)
    f = lambda p,a,b: F.cross_entropy(p, a) + F.mse_loss(p[:,0], b)
    got = MixedLoss(f, (y,y.float()), plan, (mixed,number), interpolate_loss=False)(pred, mixed, number)
    torch.testing.assert_close(got, f(pred, mixed, number))
    mask = torch.randint(0,C,(N,3,3))
    with pytest.raises(ValueError, match='interpolate_loss=False: the labels of a mask'):
        MixedLoss(FocalLossFlat(axis=1), (mask,), plan, (mask,), interpolate_loss=False)(torch.randn(N,C,3,3), mask)

@pytest.mark.parametrize('f', [SoftTargetCrossEntropy(), nn.KLDivLoss(reduction='batchmean')], ids=loss_name)
def test_soft_targets_only_and_two_losses(f):
    pred,y = data('category'); plan = plan_of(lams['batch'], 'batch'); mixed = mix_one_hot(y, plan, C)
    a,b = (f(pred, F.one_hot(t, C).float()) for t in (y,plan.partners_of(y)))
    torch.testing.assert_close(MixedLoss(f, (y,), plan, (mixed,), interpolate_loss=True)(pred, mixed), .7*a+.3*b)
    torch.testing.assert_close(MixedLoss(f, (y,), plan, (mixed,))(pred, mixed), f(pred, mixed))

# --- properties: any loss, any batch, any weights

more_known = dict(bce_probabilities=lambda: nn.BCELoss(), soft_margin=lambda: nn.MultiLabelSoftMarginLoss(), smooth_l1=lambda: nn.SmoothL1Loss(), kl=lambda: nn.KLDivLoss(reduction='batchmean'),
                  f_huber=lambda: F.huber_loss, f_smooth_l1=lambda: F.smooth_l1_loss, dice=DiceLoss, bce_weight=lambda: nn.BCEWithLogitsLoss(weight=W))
takes_labels = {*category, 'dice'}
losses = {**category, **number, **more_known}

@st.composite
def mixes(draw):
    name,n,seed = draw(st.sampled_from(sorted(losses))),draw(st.integers(1,7)),draw(st.integers(0,2**16))
    lam = np.array(draw(st.lists(st.sampled_from([0.,.25,.5,.8,1.]), min_size=n, max_size=n)), np.float32)
    if draw(st.booleans()): lam[:] = lam[0]
    return name,n,seed,lam,draw(st.integers(0,n-1))

def sample(name, n, seed):
    g = torch.Generator().manual_seed(seed)
    shape = (n,C,2,3) if name=='dice' else (n,C)
    pred = torch.randn(shape, generator=g)
    if 'bce_probabilities' in name: pred = pred.sigmoid()
    if name in ('kl',) or 'nll' in name: pred = pred.log_softmax(1)
    if name in takes_labels: return pred,torch.randint(0, C, (n,2,3) if name=='dice' else (n,), generator=g)
    y = torch.rand(n, C, generator=g)
    return pred,y/y.sum(1, keepdim=True)

@settings(max_examples=150, deadline=None, derandomize=True)
@given(mixes())
def test_property_weights_1_are_plain_training(drawn):
    name,n,seed,_,shift = drawn
    f = losses[name](); pred,y = sample(name, n, seed)
    plan = Plan(n, *[np.ones(n, np.float32)]*2, partner=shift); mixed = y if y.ndim==3 else mixed_of(y, plan)
    for force in (None,True): same(both(MixedLoss(f, (y,), plan, (mixed,), interpolate_loss=force), pred, mixed), both(f, pred, y), 2e-6)

@settings(max_examples=150, deadline=None, derandomize=True)
@given(mixes())
def test_property_own_and_partner_change_places(drawn):
    "`lam` of the one and `1-lam` of the other is the same loss, told from the partner's side"
    name,n,seed,lam,shift = drawn
    f = losses[name](); pred,y = sample(name, n, seed)
    plan,other = (Plan(n, w, w, partner=shift) for w in (lam,1-lam)); y1 = plan.partners_of(y)
    mixed = y if y.ndim==3 else mixed_of(y, plan)
    back = y1 if y.ndim==3 else mixed.clone()
    same(both(MixedLoss(f, (y,), plan, (mixed,)), pred, mixed), both(MixedLoss(f, (y1,), other, (back,), partner=(y,)), pred, back), 2e-5)

@settings(max_examples=100, deadline=None, derandomize=True)
@given(mixes())
def test_property_rows_of_weights(drawn):
    "A mean or a sum of the samples' losses, each with its own weight, known or found out"
    name,n,seed,lam,shift = drawn
    pred,y = sample('ce-mean', n, seed); plan = Plan(n, lam, lam, partner=shift); mixed = mix_one_hot(y, plan, C); w = torch.tensor(lam)
    each = [w*F.cross_entropy(pred, y, reduction='none') + (1-w)*F.cross_entropy(pred, plan.partners_of(y), reduction='none')]
    for f,want in ((F.cross_entropy, each[0].mean()), (no_reduction, each[0].mean()), (summed, each[0].sum()), (FocalLoss(gamma=0., reduction='none'), each[0]),
                   (partial(F.cross_entropy, reduction='sum'), each[0].sum()), (lambda p,t: F.cross_entropy(p, t, reduction='none'), each[0])):
        torch.testing.assert_close(MixedLoss(f, (y,), plan, (mixed,))(pred, mixed), want, rtol=1e-5, atol=1e-5)
