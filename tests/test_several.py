"Samples made of more than two: chains of plans against a slow reference, their distributions, every loss against a sum by hand; clean beside mixed, and augmented beside mixed."
import copy, math, warnings
from dataclasses import replace
from functools import partial
import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.losses import *
from fastai.torch_core import TensorImage, TensorMask, set_seed
from fastai.vision.augment import AffineCoordTfm, Brightness, RandomCrop, aug_transforms
from scipy import stats
from torch import nn
import fastmix.all as fm
from fastmix.blend import blend, blend_plain
from fastmix.draw import *
from fastmix.functional import Mixup, mix_batch, ricap_batch, zeta_batch
from fastmix.loss import MixedLoss
from fastmix.plan import Plan
from fastmix.target import majority_target, mix_one_hot, mix_soft_target, mix_target, move_labels
from kinds import C, KINDS, METHODS, N, Batches, attempt, per_pixel
from slow import slow, slow_move
from test_data_kinds import terms
from test_methods import Syncs, dtypes, formats, shapes

draws = dict(ricap=draw_ricap, ricap_wide=partial(draw_ricap, beta=2.), zeta=lambda rng,n,size,**kw: draw_zetamix(rng, n, **kw),
             zeta_flat=lambda rng,n,size,**kw: draw_zetamix(rng, n, 0., **kw), zeta_3=lambda rng,n,size,**kw: draw_zetamix(rng, n, 1., 3, **kw))
modes = ('elem','batch')

# --- chains

@pytest.mark.parametrize('dtype', dtypes, ids=lambda o: str(o)[6:])
@pytest.mark.parametrize('mode', modes)
@pytest.mark.parametrize('name', draws)
@pytest.mark.parametrize('shape', shapes)
def test_against_the_slow_reference(shape, name, mode, dtype):
    n,c,*size = shapes[shape]
    if not size and 'ricap' in name: pytest.skip('nothing to cut')
    x0 = torch.rand(n, c, *size).to(dtype)
    for seed in range(3):
        plan = draws[name](make_rng(seed), n, tuple(size), mode=mode, prob=.7 if seed else 1.)
        for fmt,x in formats(x0):
            before,out = x.clone(),blend(x, plan)
            torch.testing.assert_close(out.double(), slow(x, plan), rtol=0, atol=2*dtypes[dtype])
            assert out.dtype==dtype and torch.equal(x, before)
            if fmt!='strided': assert out.stride()==x.stride(), fmt
            if not plan.mixes: continue
            t = x.clone().requires_grad_()
            torch.testing.assert_close(blend(t, plan).detach(), out, rtol=0, atol=dtypes[dtype])
            own = x.clone()
            assert blend(own, plan, inplace=True) is own and torch.equal(own, out)

@pytest.mark.parametrize('name', draws)
def test_gradients(name):
    x,w = torch.rand(5,2,7,6, dtype=torch.double),torch.rand(5,2,7,6)
    plan,grads = draws[name](make_rng(1), 5, (7,6), mode='elem'),[]
    for f in (blend,slow):
        t = x.clone().requires_grad_()
        (f(t, plan)*w).sum().backward()
        grads.append(t.grad)
    torch.testing.assert_close(*grads, rtol=0, atol=1e-6)

@pytest.mark.parametrize('mode', modes)
def test_masks_are_put_together(mode):
    y = torch.randint(0, 5, (5,9,14))
    for seed in range(5):
        plan = draw_ricap(make_rng(seed), 5, (9,14), 1., mode)
        assert torch.equal(move_labels(y, plan), slow_move(y, plan))
        assert torch.equal(move_labels(y[:,None], plan), slow_move(y, plan)[:,None])
        torch.testing.assert_close(blend(y.double()[:,None], plan)[:,0], slow_move(y, plan).double())

@pytest.mark.parametrize('n', [1,2,3,4])
@pytest.mark.parametrize('name', draws)
def test_small_batches(name, n):
    x,y = torch.rand(n,1,8,8),torch.arange(n)
    for mode in modes:
        plan = draws[name](make_rng(0), n, (8,8), mode=mode)
        assert plan.mixes==(n>1)
        rows = mix_soft_target(y, plan, 5)
        torch.testing.assert_close(rows.sum(1), torch.ones(n))
        torch.testing.assert_close(blend(x, plan).double(), slow(x, plan), rtol=0, atol=1e-6)

def shares_by_hand(plan, n):
    "(n,n) share of each label in each sample, by the sequence of the steps"
    t = np.eye(n)
    for p in plan.steps: t = np.stack([p.lam[i]*t[i] + (1-p.lam[i])*np.eye(n)[p.idx[i]] for i in range(n)])
    return torch.tensor(t, dtype=torch.float)

@pytest.mark.parametrize('mode', modes)
@pytest.mark.parametrize('name', draws)
def test_labels_follow(name, mode):
    "One-hot rows, numbers, the share of each, and the majority; RICAP's are the areas to the pixel"
    y = torch.arange(8)
    for seed in range(3):
        plan = draws[name](make_rng(seed), 8, (9,14), mode=mode, prob=.6 if seed else 1.)
        want = shares_by_hand(plan, 8)
        torch.testing.assert_close(mix_one_hot(y, plan, 8), want, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.diag(want), torch.tensor(plan.own_share), rtol=0, atol=1e-5)
        torch.testing.assert_close(mix_soft_target(y.float(), plan), want@y.float(), rtol=0, atol=1e-4)
        most = majority_target(y, plan)
        assert (want.max(1)[0]-want[y,most]<1e-5).all()
        if 'ricap' in name:
            pixels = blend(torch.eye(8)[:,:,None,None].expand(-1,-1,9,14).contiguous(), plan).mean((2,3))
            torch.testing.assert_close(pixels, want, rtol=0, atol=1e-5)

def test_a_nan_stays_out():
    x = torch.rand(6,1,8,8); x[0] = torch.nan
    for seed in range(5):
        plan = draw_zetamix(make_rng(seed), 6, terms=3)
        w = shares_by_hand(plan, 6)
        assert torch.equal(blend(x, plan).isnan().flatten(1).any(1), w[:,0]>0)
        plan = draw_zetamix(make_rng(seed), 6, prob=.5)
        still = torch.tensor(plan.own_share==1)
        assert torch.equal(blend(x, plan)[still].nan_to_num(9.), x[still].nan_to_num(9.))
        plan = draw_ricap(make_rng(seed), 6, (8,8), 1.)
        assert torch.equal(blend(x, plan).nan_to_num(9.).double(), slow(x, plan).nan_to_num(9.))

# --- distributions

@pytest.mark.parametrize('gamma', [0., 1., 2.8])
@pytest.mark.parametrize('terms', [None,1,4,100])
def test_zeta_weights(gamma, terms):
    "A p-series, in an order that is drawn"
    k = min(terms or 32, 32)
    w = np.arange(1, k+1)**-gamma; w /= w.sum()
    seen = np.zeros(32)
    for s in range(300):
        plan = draw_zetamix(make_rng(s), 32, gamma, terms)
        got = np.array([plan.own_share[0], *sorted((p[0] for p,_ in plan.parts), reverse=True)])
        np.testing.assert_allclose(got, w[:len(got)], atol=2e-6)
        for p in plan.steps[:1]: seen[p.partner] += 1
    if k>1: assert seen[0]==0 and stats.chisquare(seen[1:]).pvalue>1e-4                                # the second largest weight goes to anybody
    half = draw_zetamix(make_rng(0), 32, gamma, terms, strength=.5)
    np.testing.assert_allclose(1-half.own_share, (1-w[0])/2, atol=2e-6)

@pytest.mark.parametrize('beta', [.3, 1.])
def test_ricap_places(beta):
    "The border point is from Beta(beta,beta) in each direction, crops begin anywhere, each corner of its own"
    plans = [draw_ricap(make_rng(s), 64, (10**7,10**7), beta, 'elem') for s in range(30)]
    own = [p.steps[-1] for p in plans]
    border = np.concatenate([o.box[...,1] for o in own])/10**7
    for d in (0,1): assert stats.kstest(border[:,d], stats.beta(beta, beta).cdf).statistic < .04
    assert abs(np.corrcoef(border.T)[0,1])<.1
    for k in range(4):
        steps = [p.steps[k] for p in plans]
        box,start = np.concatenate([o.box for o in steps]),np.concatenate([o.start for o in steps])
        room = 10**7-(box[...,1]-box[...,0])
        u = (start/np.maximum(room, 1))[room>1000]
        assert stats.kstest(u, 'uniform').statistic < .05
    assert all(len({o.partner for o in p.steps})==4 for p in plans)                                   # four different pictures
    one = draw_ricap(make_rng(0), 8, (32,32))
    assert all((o.box==o.box[0]).all() and (o.start==o.start[0]).all() and o.per_batch for o in one.steps)

# --- losses

def by_hand(f, pred, y, plan):
    "The sum over all partners of share times the loss of each sample"
    shares = [(torch.tensor(plan.own_share), y)] + [(torch.tensor(s), y[torch.as_tensor(p.idx)]) for s,p in plan.parts]
    return [(s, f(pred, t)) for s,t in shares]

plans = dict(zeta=lambda n: draw_zetamix(make_rng(1), n, 1., prob=.8), zeta_3=lambda n: draw_zetamix(make_rng(1), n, 1., 3), ricap=lambda n: draw_ricap(make_rng(2), n, (16,16), 1., 'elem'), ricap_batch=lambda n: draw_ricap(make_rng(2), n, (16,16), 1.))

@pytest.mark.parametrize('reduction', ['mean','sum','none'])
@pytest.mark.parametrize('kw', [{}, dict(weight=torch.tensor([1.,2.,.5,3.])), dict(ignore_index=1), dict(label_smoothing=.1), dict(weight=torch.tensor([1.,2.,.5,3.]), ignore_index=2, label_smoothing=.2)], ids=lambda o: '+'.join(o) or 'plain')
@pytest.mark.parametrize('name', plans)
def test_cross_entropy(name, kw, reduction):
    n = 8
    pred,y,plan = torch.randn(n,4, requires_grad=True),torch.randint(0,4,(n,)),plans[name](n)
    loss = MixedLoss(nn.CrossEntropyLoss(reduction=reduction, **kw), (y,), plan, (mix_one_hot(y, plan, 4),))
    got = loss(pred, loss.mixed[0])
    none = partial(F.cross_entropy, reduction='none', **kw)
    num = sum(s*l for s,l in by_hand(none, pred, y, plan))
    if reduction=='none': want = num
    elif reduction=='sum': want = num.sum()
    else: # what torch divides by: the class weights of the labels that are not ignored
        w,ig = kw.get('weight', torch.ones(4)),kw.get('ignore_index', -100)
        den = sum((s*l).sum() for s,l in by_hand(lambda p,t: w[t]*(t!=ig), pred, y, plan))
        want = num.sum()/den
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    a,b = torch.autograd.grad(got.sum(), pred)[0],torch.autograd.grad(want.sum(), pred)[0]
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)

class Odd(nn.Module):
    "A loss that nobody knows, with a reduction"
    reduction = 'mean'
    def forward(self, p, t):
        l = p.softmax(1).gather(1, t[:,None])[:,0].pow(3)
        return l if self.reduction=='none' else l.mean()

others = dict(margin=lambda p,t: F.multi_margin_loss(p, t), focal=FocalLossFlat(), odd=Odd(), nll=lambda p,t: F.nll_loss(p.log_softmax(1), t), module=nn.MultiMarginLoss(), summed=lambda p,t: F.multi_margin_loss(p, t, reduction='sum'))
@pytest.mark.parametrize('loss', others)
@pytest.mark.parametrize('name', plans)
def test_any_loss(name, loss):
    "A loss that takes labels only: one for each partner"
    n,f = 8,others[loss]
    pred,y,plan = torch.randn(n,4, requires_grad=True),torch.randint(0,4,(n,)),plans[name](n)
    got = MixedLoss(f, (y,), plan, (mix_one_hot(y, plan, 4),))
    got = got(pred, got.mixed[0])
    def single(p, t): return torch.stack([f(p[i:i+1], t[i:i+1]).reshape(()) for i in range(n)])
    want = sum(s*l for s,l in by_hand(single, pred, y, plan))
    torch.testing.assert_close(got, want.sum() if loss=='summed' else want.mean(), rtol=1e-4, atol=1e-6)

@pytest.mark.parametrize('name', plans)
def test_linear_and_regression(name):
    n = 8
    pred,plan = torch.randn(n,4, requires_grad=True),plans[name](n)
    y = torch.randint(0,2,(n,4)).float()
    mixed = mix_soft_target(y, plan)
    got = MixedLoss(nn.BCEWithLogitsLoss(), (y,), plan, (mixed,))(pred, mixed)
    want = sum(s[:,None]*l for s,l in by_hand(partial(F.binary_cross_entropy_with_logits, reduction='none'), pred, y, plan)).mean()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    forced = MixedLoss(nn.MSELoss(), (y,), plan, (mixed,), interpolate_loss=True)(pred, mixed)
    torch.testing.assert_close(forced, sum(s[:,None]*l for s,l in by_hand(lambda p,t: (p-t)**2, pred, y, plan)).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(MixedLoss(nn.MSELoss(), (y,), plan, (mixed,))(pred, mixed), F.mse_loss(pred, mixed))

def test_a_loss_over_the_batch():
    "One weight for the batch: a sum of losses; weights of their own: refused by name"
    def correlation(p, t): return 1-torch.corrcoef(torch.stack((p[:,0],t[:,0])))[0,1]
    pred,y = torch.randn(8,1, requires_grad=True),torch.rand(8,1)
    plan = draw_zetamix(make_rng(0), 8, 1., 3)
    got = MixedLoss(correlation, (y,), plan, (mix_soft_target(y, plan),))
    want = sum(s[0]*l for s,l in by_hand(correlation, pred, y, plan))
    torch.testing.assert_close(got(pred, got.mixed[0]), want)
    plan = draw_ricap(make_rng(0), 8, (8,8), 1., 'elem')
    got = MixedLoss(correlation, (y,), plan, (mix_soft_target(y, plan),))
    with pytest.raises(ValueError, match="mode='batch'"): got(pred, got.mixed[0])

# --- the callbacks, on every kind of data

makes = dict(ricap=fm.RICAP, ricap_elem=partial(fm.RICAP, 1., mode='elem', prob=.8), zeta=fm.ZetaMix, zeta_3=partial(fm.ZetaMix, 1., 3))

def scaled(plan, x, size):
    ratio = np.array(x.shape[2:])/np.array(size)
    return plan.each_step(lambda p: replace(p, box=np.rint(p.box*ratio[:,None]).astype(int), start=np.rint(p.start*ratio).astype(int)))

def want_input(x, plan, size):
    if plan.size is None: return slow(x, plan)
    if x.ndim==2: return slow(x, plan.each_step(lambda p: Plan(p.n, p.lam, p.lam, p.partner)))
    return slow(x, plan if x.shape[2:]==size else scaled(plan, x, size))

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', makes)
def test_inputs_targets_and_loss(monkeypatch, name, kind):
    monkeypatch.setitem(METHODS, name, makes[name])
    batches,seen,error = attempt(name, kind)
    if error:
        assert ('no place' in error or 'has none' in error or 'cannot be mixed' in error), error
        return
    size = next((tuple(o.shape[2:]) for o in seen[0][0] if o.ndim>2), None)
    assert any(s[4].mixes for s in seen)
    for b,(xb,yb,pred,loss,plan) in zip(batches, seen):
        if not plan.mixes: continue
        k = len(xb)
        for x,got in zip(b, xb): torch.testing.assert_close(got.double(), want_input(x, plan, size), rtol=0, atol=1e-5)
        W = shares_by_hand(plan, N)
        dense = [o.ndim==3 or kind.endswith('each pixel') for o in b[k:]]
        if plan.size is not None and any(dense):
            y = b[k]
            want = slow_move(y, plan) if y.ndim==3 else slow(y, plan).float()
            torch.testing.assert_close(yb[0], want)
            torch.testing.assert_close(loss, terms(kind, pred, [want]).mean(), rtol=1e-5, atol=1e-5)
            continue
        if not dense[0]:
            for y,got in zip(b[k:], yb):
                rows = F.one_hot(y, C).float() if not y.is_floating_point() else y
                torch.testing.assert_close(got, (W@rows.flatten(1)).view_as(got), rtol=0, atol=1e-5)
        regression = kind.endswith((', a number','each pixel'))
        if regression: want = terms(kind, pred, yb)
        else: # each label with its share
            each = torch.stack([terms(kind, pred, [y[[j]*N] if y.is_floating_point() or y.ndim>1 else F.one_hot(y[[j]*N], C).float() for y in b[k:]]) for j in range(N)], 1)
            want = (W*each).sum(1)
        torch.testing.assert_close(loss, want.mean(), rtol=1e-5, atol=1e-5)

@pytest.mark.parametrize('kind', ['label','mask','number','focal'])
@pytest.mark.parametrize('name', [*makes,'same','other','rare','remix','keep'])
def test_nothing_is_read_on_the_host(monkeypatch, name, kind):
    if name in ('same','other','rare','remix') and kind in ('mask','number'): pytest.skip('refused')
    monkeypatch.setattr('fastmix.tensors._known_finite', lambda a,b: False)
    x = torch.rand(6,1,8,8)
    y = dict(label=torch.randint(0,4,(6,)), mask=torch.randint(0,4,(6,8,8)), number=torch.rand(6,4), focal=torch.randint(0,4,(6,)))[kind]
    data,syncs = [(x,y)]*3,Syncs()
    class Guard(Callback):
        run_valid = False
        def __init__(self, first): self.order = fm.MixHandler.order + (-1 if first else 1)
        def before_batch(self):
            if self.order<fm.MixHandler.order: syncs.__enter__()
        def after_loss(self):
            if self.order>fm.MixHandler.order: syncs.__exit__(None, None, None)
    model = nn.Conv2d(1,4,1) if kind=='mask' else nn.Sequential(nn.Conv2d(1,4,3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,4))
    loss = nn.MSELoss() if kind=='number' else FocalLossFlat() if kind=='focal' else nn.CrossEntropyLoss()
    cb = makes[name]() if name in makes else fm.MixUp(keep=True) if name=='keep' else fm.CutMix(mode='elem', imbalance=(1,1.), class_counts=(9,4,2,1), n_classes=4) if name=='remix' else fm.MixUp(partner=name)
    learn = Learner(DataLoaders(data, data[:1]), model, loss_func=loss, cbs=[cb,Guard(True),Guard(False)])
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ in ('ProgressCallback','Recorder')])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.fit(1)
    assert syncs.found==[]

def test_zeta_says_what_it_leaves_out():
    data = [(torch.rand(8,1,8,8),torch.randint(0,4,(8,)))]*3
    def run(loss, cb, y=None):
        b = [(x, y if y is not None else t) for x,t in data]
        model = nn.Sequential(nn.Flatten(), nn.Linear(64,4))
        learn = Learner(DataLoaders(b, b[:0]), model, loss_func=loss, cbs=cb)
        learn.remove_cbs([o for o in learn.cbs if type(o).__name__ in ('ProgressCallback','Recorder')])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            learn.fit(1)
        return len(cb.plan.steps),len([o for o in said if 'first 4 terms' in str(o.message)])
    assert run(nn.CrossEntropyLoss(), fm.ZetaMix())==(7,0)
    assert run(nn.BCEWithLogitsLoss(), fm.ZetaMix(), torch.rand(8,4))==(7,0)
    assert run(nn.MSELoss(), fm.ZetaMix(), torch.rand(8,4))==(7,0)
    assert run(nn.MSELoss(), fm.ZetaMix(interpolate_loss=True), torch.rand(8,4))==(3,1)
    assert run(nn.MultiMarginLoss(), fm.ZetaMix(n_classes=4))==(3,1)
    assert run(nn.MultiMarginLoss(), fm.ZetaMix(terms=2, n_classes=4))==(1,0)

@pytest.mark.parametrize('make,why', [(lambda: fm.RICAP(mode='pair'), "mode='pair'"), (lambda: fm.RICAP(0), 'beta=0'), (lambda: fm.RICAP(partner='same'), "partner='same': RICAP has several partners"),
    (lambda: fm.ZetaMix(imbalance=(3,.5)), 'imbalance=.*several partners'), (lambda: fm.ZetaMix(-1), 'gamma=-1'), (lambda: fm.ZetaMix(terms=1.5), 'terms=1.5'), (lambda: fm.MixUp(keep=2), 'keep=2'),
    (lambda: fm.MixUp(augment=[1]), r'augment=\[1\]'), (lambda: fm.RecursiveMix(keep=True), 'keep=True: RecursiveMix'), (lambda: fm.RecursiveMix(augment=Brightness()), 'augment=(.|\n)*RecursiveMix')])
def test_refused_when_made(make, why):
    with pytest.raises(ValueError, match=why): make()

# --- a plain loop

def test_functional():
    x,y = torch.rand(8,3,16,16),torch.arange(8)
    for f,k in ((ricap_batch,4),(partial(zeta_batch, terms=None),8),(zeta_batch,4)):
        torch.manual_seed(0)
        mixed,targets,weights = f(x, y)
        assert len(targets)==len(weights)==k and abs(sum(weights)-1)<1e-6 and torch.equal(targets[0], y)
        torch.manual_seed(0)
        again,several,_ = f(x, (y,y.float()))
        assert torch.equal(mixed, again) and all(torch.equal(a, t) and torch.equal(b, t.float()) for (a,b),t in zip(several, targets))
    plan = draw_ricap(make_rng(0), 8, (16,16))
    m,(t,mask) = mix_batch(x, (y,(x[:,0]*4).long()), plan, num_classes=(8,4))
    assert torch.equal(mask, (m[:,0]*4).long()) and torch.allclose(t, mix_one_hot(y, plan, 8))
    with pytest.raises(ValueError, match='terms=0'): zeta_batch(x, y, terms=0)
    with pytest.raises(ValueError, match='beta=-1'): ricap_batch(x, y, -1)
    with pytest.raises(ValueError, match='3 samples'): ricap_batch(x, y[:3])

# --- clean beside mixed

class Watch(Callback):
    order,run_valid = fm.MixHandler.order+1,False
    def __init__(self): self.seen = []
    def after_loss(self):
        cb = next(o for o in self.learn.cbs if isinstance(o, fm.MixHandler))
        self.seen.append((self.learn.x, self.learn.yb, self.learn.pred, self.learn.loss.detach(), cb.lam, cb.idx, cb.plan))

def fit(cb, batches, model, loss, **kw):
    w = Watch()
    learn = Learner(DataLoaders(Batches(batches, 1), Batches(batches[:0], 1)), model, loss_func=loss, cbs=[cb,w], **kw)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ in ('ProgressCallback','Recorder')])
    learn.fit(1)
    return w.seen

def small(c=4): return nn.Sequential(nn.Conv2d(1,4,3,2,1), nn.ReLU(), nn.Conv2d(4,4,3,2,1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,c))

keeps = dict(MixUp=partial(fm.MixUp, 20.), CutMix=fm.CutMix, CutMixUp=fm.CutMixUp, ResizeMix=fm.ResizeMix, FMix=fm.FMix, soft=partial(fm.FMix, max_soft=.3), RICAP=fm.RICAP, ZetaMix=fm.ZetaMix,
             rare=partial(fm.MixUp, partner='rare'), remix=partial(fm.CutMix, mode='elem', imbalance=(1,1.), class_counts=(9,4,2,1)))
@pytest.mark.parametrize('name', keeps)
def test_keep(name):
    "2n rows, the first n as they are; the loss is half that of the clean batch and half that of the mixed one"
    n = 8
    batches = [(torch.rand(n,1,16,16),torch.randint(0,4,(n,))) for _ in range(3)]
    for (x,y),(xs,yb,pred,loss,lam,idx,plan) in zip(batches, fit(keeps[name](keep=True), batches, small(), nn.CrossEntropyLoss())):
        if not plan.mixes: continue
        assert len(xs)==len(yb[0])==len(pred)==len(lam)==len(idx)==2*n
        assert torch.equal(xs[:n], x) and torch.equal(yb[0][:n], F.one_hot(y, 4).float()) and (lam[:n]==1).all()
        torch.testing.assert_close(xs[n:].double(), slow(torch.cat([x,x]), plan)[n:], rtol=0, atol=1e-5)
        mixed = -(yb[0][n:]*pred[n:].log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(loss, (F.cross_entropy(pred[:n], y)+mixed)/2)

def test_keep_draws_as_without():
    x = torch.rand(8,1,16,16)
    def weights(**kw):
        set_seed(0)
        return fit(fm.MixUp(**kw), [(x,torch.arange(8)%4)], small(), nn.CrossEntropyLoss())[0][4][-8:]
    assert torch.equal(weights(), weights(keep=True))

def test_keep_with_masks_and_hidden_layers():
    batches = [(torch.rand(N,3,16,16),torch.randint(0,C,(N,16,16))) for _ in range(2)]
    for cb in (fm.CutMix(keep=True),fm.MixUp(keep=True),fm.FMix(keep=True)):
        for (x,y),(xs,yb,pred,*_) in zip(batches, fit(cb, batches, per_pixel(C), nn.CrossEntropyLoss())):
            assert len(xs)==2*N and torch.equal(yb[0][:N], y) and torch.equal(xs[:N], x)
    at = [(torch.rand(8,1,16,16),torch.arange(8)%4)]*3
    for xs,yb,pred,*_ in fit(fm.ManifoldMixUp(keep=True), at, small(), nn.CrossEntropyLoss()): assert len(xs)==len(pred)==16
    with pytest.raises(TypeError, match='keep=True'): fit(fm.MixUp(keep=True), [(torch.rand(4,1,8,8),torch.arange(4),['a']*4)], small(), lambda p,y,z: F.cross_entropy(p,y))

def test_keep_in_a_whole_fit():
    "With metrics on the training set, a validation, and a batch that is not mixed"
    data = [(torch.rand(8,1,16,16),torch.arange(8)%4)]*4
    learn = Learner(DataLoaders(Batches(data, 1), Batches(data, 1)), small(), loss_func=nn.CrossEntropyLoss(), cbs=fm.MixUp(mode='batch', prob=.5, keep=True), metrics=lambda p,y: float(len(y)))
    learn.recorder.train_metrics = True
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert learn.get_preds(dl=learn.dls.valid)[0].shape==(32,4)

# --- augmented beside mixed

def mirror(x): return torch.tensor([[-1.,0,0],[0,1,0],[0,0,1]]).expand(len(x),3,3)

def test_augment():
    "Who is not mixed is augmented; who is mixed is not, and neither is a partner"
    x,y = TensorImage(torch.rand(16,3,8,8)),torch.arange(16)%4
    for cb in (fm.MixUp(prob=.5, augment=AffineCoordTfm(aff_fs=mirror)), fm.CutMix(mode='elem', prob=.5, augment=[AffineCoordTfm(aff_fs=mirror)])):
        for xs,yb,pred,loss,lam,idx,plan in fit(cb, [(x,y)]*2, nn.Sequential(nn.Flatten(), nn.Linear(192,4)), nn.CrossEntropyLoss()):
            still = torch.tensor(~plan.touched)
            assert 0<still.sum()<16
            torch.testing.assert_close(xs[still].as_subclass(torch.Tensor), x[still].flip(3).as_subclass(torch.Tensor), rtol=0, atol=1e-5)
            torch.testing.assert_close(xs[~still].as_subclass(torch.Tensor).double(), slow(x.as_subclass(torch.Tensor), plan)[~still], rtol=0, atol=1e-5)

def test_augment_masks_and_no_mix():
    "Masks go with their pictures; a batch that is not mixed at all is augmented as a whole; with keep the clean half is"
    x = TensorImage(torch.rand(8,3,8,8)); m = TensorMask((x[:,0]*C).long())
    for cb in (fm.CutMix(mode='elem', prob=.5, augment=AffineCoordTfm(aff_fs=mirror)), fm.CutMix(prob=0., augment=AffineCoordTfm(aff_fs=mirror)), fm.CutMix(keep=True, augment=AffineCoordTfm(aff_fs=mirror, mode='nearest'))):
        for xs,yb,pred,loss,lam,idx,plan in fit(cb, [(x,m)]*2, per_pixel(C), CrossEntropyLossFlat(axis=1)):
            got = (xs[:,0]*C-1e-4).long().as_subclass(torch.Tensor)
            assert (got==yb[0].as_subclass(torch.Tensor)).float().mean()>.98
            still = torch.tensor(~plan.touched) if plan.n==8 else torch.arange(16)<8
            want = torch.cat([x,x])[:plan.n].flip(3)[still]
            torch.testing.assert_close(xs[still].as_subclass(torch.Tensor), want.as_subclass(torch.Tensor), rtol=0, atol=1e-4)

def test_augment_undoes_the_normalisation():
    "Brightness has a meaning between 0 and 1 only"
    norm = Normalize(*[torch.full((1,3,1,1), v) for v in (.5,.25)])
    x = TensorImage((torch.rand(8,3,8,8)-.5)/.25)
    class Loader(Batches):
        class after_batch: fs = [norm]
    bright = Brightness(max_lighting=.4, p=1.)
    w = Watch()
    dl = Loader([(x,torch.arange(8)%4)], 1)
    learn = Learner(DataLoaders(dl, Loader([], 1)), nn.Sequential(nn.Flatten(), nn.Linear(192,4)), loss_func=nn.CrossEntropyLoss(), cbs=[fm.MixUp(prob=0., augment=bright),w])
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ in ('ProgressCallback','Recorder')])
    learn.fit(1)
    out = w.seen[0][0]*.25+.5
    assert out.isfinite().all() and 0<=out.min() and out.max()<=1 and not torch.allclose(out, x*.25+.5, atol=.01)

def test_augment_with_fastai_transforms_and_refusals():
    x,y = TensorImage(torch.rand(8,3,16,16)),torch.arange(8)%4
    def run(cb): return fit(cb, [(x,y)]*2, nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), nn.CrossEntropyLoss())
    assert all(o[0].isfinite().all() for o in run(fm.MixUp(prob=.5, augment=aug_transforms(size=16))))
    with pytest.raises(ValueError, match='use transforms that keep the size'): run(fm.MixUp(prob=.5, augment=aug_transforms(size=12)))
    a,b = (run(fm.MixUp(prob=1., augment=aug)) for aug in (None,aug_transforms(size=16)))
    assert a and b
