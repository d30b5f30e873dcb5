"Every loss function on mixed targets: contract points 1, 2 and 5."
import copy, pickle
from functools import partial
import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.losses import *
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy as TimmLabelSmoothing, SoftTargetCrossEntropy
from torch import nn
from fastmix.crossentropy import *
from fastmix.draw import *
from fastmix.loss import *
from fastmix.lossspec import *
from fastmix.plan import Plan
from fastmix.target import *
from fastmix.tensors import per_sample

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

@pytest.mark.parametrize('shape', [(6,1), (6,), (6,1,2,3), (6,2,3)], ids=str)
def test_targets_with_a_dimension_to_spare(shape):
    "Targets `(n,1)`, which tables have: each sample keeps its own weight"
    torch.manual_seed(0)
    pred,y = torch.randn(6,4,*shape[2:] if shape[1:2]==(1,) else shape[1:]),torch.randint(0,4,shape)
    plan = draw_mixup(make_rng(0), 6)
    bare = y.reshape(pred.shape[:1]+pred.shape[2:])
    f = torch.nn.CrossEntropyLoss(reduction='none')
    lam = torch.from_numpy(plan.lam).view(-1, *[1]*(bare.ndim-1))
    want = (lam*f(pred, bare) + (1-lam)*f(pred, plan.partners_of(bare))).mean()
    got = mixed_cross_entropy(pred, y, plan.partners_of(y), per_sample(plan.lam, y), cross_entropy_of(torch.nn.CrossEntropyLoss()))
    torch.testing.assert_close(got, want)
