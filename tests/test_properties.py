"""The contract as properties: hypothesis looks for a batch, a plan, a loss, a value or a schedule for which it does not hold.

The same cases in every run. More of them, and others each time: `python -m pytest tests/test_properties.py --hypothesis-profile=search`."""
import io, math
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from fastai.callback.schedule import SchedCos, SchedLin
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropy, MSELossFlat
from fastcore.foundation import L
from hypothesis import assume, given, strategies as st
from torch import nn
from fastmix.blend import blend
from fastmix.checkpoint.fingerprint import same_value
from fastmix.checkpoint.serialize import from_plain, to_plain
from fastmix.draw import *
from fastmix.loss import MixedLoss
from fastmix.plan import Plan
from fastmix.schedule import MixSchedule, hesitation, off_after, warm_up
from fastmix.target import mix_continuous, mix_one_hot, smooth_labels
from slow import slow

share,seeds = st.floats(0, 1, width=32),st.integers(0, 2**32-1)
def generator(seed): return torch.Generator().manual_seed(seed)

# --- plans of every method

@st.composite
def plans(draw, dims=(1,2,3), n_source=None):
    "`(plan, spatial size)`: any method, mode, batch size, spatial size, chance and strength"
    n,size = draw(st.integers(1, 7)),tuple(draw(st.lists(st.integers(1, 9), min_size=min(dims), max_size=max(dims))))
    mode,rng = draw(st.sampled_from(MODES)),make_rng(draw(seeds))
    alpha,kw = draw(st.sampled_from([0., .1, 1., 4.])),dict(mode=mode, prob=draw(st.sampled_from([0., .5, 1.])), strength=draw(st.sampled_from([0., .3, 1.])))
    method = draw(st.sampled_from(['mixup', 'cutmix', 'minmax', 'cutmixup', 'resizemix', 'fmix', 'recursivemix'] if size else ['mixup']))
    if method=='mixup': plan = draw_mixup(rng, n, alpha, fold=draw(st.booleans()), **kw)
    elif method=='cutmix': plan = draw_cutmix(rng, n, size, alpha, correct_lam=draw(st.booleans()), **kw)
    elif method=='minmax': plan = draw_cutmix(rng, n, size, minmax=sorted((draw(share), draw(share))), **kw)
    elif method=='cutmixup': plan = draw_cutmixup(rng, n, size, mix_alpha=alpha, cut_alpha=alpha, **kw)
    elif method=='resizemix': plan = draw_resizemix(rng, n, size, scope=sorted((draw(share), draw(share))), **kw)
    elif method=='fmix': plan = draw_fmix(rng, n, size, alpha=alpha or 1., max_soft=draw(st.sampled_from([0., .3])), **kw)
    else: plan = draw_recursivemix(rng, n, draw(st.integers(1, 7)) if n_source is None else n_source, size, alpha=alpha, **kw)
    return plan,size

def listed(plan): return not isinstance(plan.partner, (int, str))

@st.composite
def batches(draw, size, n, dtypes=(torch.float32, torch.float64, torch.float16, torch.bfloat16)):
    "A batch of `n`, of any of the dtypes and in any memory format"
    x = torch.rand(n, draw(st.integers(1, 3)), *size, generator=generator(draw(seeds))).to(draw(st.sampled_from(dtypes)))
    formats = ['contiguous', 'strided', 'reversed'] + {4: ['channels_last'], 5: ['channels_last_3d']}.get(x.ndim, [])
    form = draw(st.sampled_from(formats))
    if form=='strided': return torch.stack([x, x], -1)[...,0]
    if form=='reversed': return x.flip(-1).transpose(0, -1).contiguous().transpose(0, -1)
    return x if form=='contiguous' else x.to(memory_format=getattr(torch, form))

tolerance = {torch.float32: 3e-6, torch.float64: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}

@given(plans(dims=(0,3)), st.data())
def test_blend_is_the_slow_reference(case, data):
    "Of any shape, dtype, mode, memory format and method; the batch is left as it was; in place the same, bit by bit"
    plan,size = case
    x = data.draw(batches(size, plan.n))
    source = torch.rand(1+int(plan.idx.max()), *x.shape[1:], generator=generator(0)).to(x.dtype) if listed(plan) else None
    before = x.clone()
    out = blend(x, plan, source=source)
    torch.testing.assert_close(out.double(), slow(x, plan, source), rtol=0, atol=tolerance[x.dtype])
    assert torch.equal(x, before) and out.dtype==x.dtype and out.shape==x.shape
    own = x.clone()
    assert blend(own, plan, inplace=True, source=source) is own and torch.equal(own, out)

@given(plans(dims=(0,3)), st.data())
def test_blend_leaves_out_what_has_no_weight(case, data):
    "A sample of weight 1 comes out bit by bit, whatever its partner holds"
    plan,size = case
    assume(not listed(plan))
    untouched = torch.from_numpy(np.asarray(plan.lam)==1) & torch.from_numpy(np.asarray(plan.weight)==1)
    if plan.box is not None: untouched &= torch.from_numpy(box_area(plan.box, size)==0)
    x = data.draw(batches(size, plan.n))
    x[~untouched] = data.draw(st.sampled_from([math.nan, math.inf, 1.]))
    assert torch.equal(blend(x, plan)[untouched], x[untouched])

@given(plans())
def test_boxes_lie_in_the_picture(case):
    "They start before they stop and end in the picture, and the weights of plans are weights"
    plan,size = case
    for w in (plan.weight, plan.lam): assert w.shape==(plan.n,) and w.dtype==np.float32 and (0<=w).all() and (w<=1).all()
    assert plan.idx.shape==(plan.n,) and (plan.idx>=0).all()
    if plan.box is None: return
    start,stop = plan.box[...,0],plan.box[...,1]
    assert plan.box.shape==(plan.n, len(size), 2) and (0<=start).all() and (start<=stop).all() and (stop<=np.array(size)).all()
    area = box_area(plan.box, size)
    assert (0<=area).all() and (area<=1).all()

@given(plans(), st.lists(st.integers(1, 40), min_size=3, max_size=3))
def test_a_plan_resized_there_and_back(case, other):
    "At another size its boxes lie in the picture; from a size that is no smaller they come back as they were"
    plan,size = case
    assume(plan.box is not None)
    there = plan.resized_to(tuple(other[:len(size)]))
    assert (there.box>=0).all() and (there.box<=np.array(there.size)[:,None]).all() and (there.box[...,0]<=there.box[...,1]).all()
    larger = tuple(s+o for s,o in zip(size, other))
    back = plan.resized_to(larger).resized_to(size)
    assert back.size==size and (back.box==plan.box).all() and (back.lam==plan.lam).all() and np.array_equal(back.idx, plan.idx)

# --- targets

@given(plans(), st.integers(1, 9), st.sampled_from([0., .1, .9]), seeds)
def test_rows_of_mixed_targets_sum_to_1(case, n_classes, eps, seed):
    "And hold `lam` for the own label and the rest for the partner's, smoothed"
    plan,_ = case
    y,m = (torch.randint(n_classes, (k,), generator=generator(seed)) for k in (plan.n, int(plan.idx.max())+1))
    source = m if listed(plan) else None
    t = mix_one_hot(y, plan, n_classes, eps, source=source)
    torch.testing.assert_close(t.sum(1), torch.ones(plan.n), rtol=0, atol=2e-6)
    lam,partner = torch.from_numpy(np.asarray(plan.lam)),(y if source is None else source)[torch.as_tensor(plan.idx)]
    want = lam[:,None]*F.one_hot(y, n_classes) + (1-lam[:,None])*F.one_hot(partner, n_classes)
    torch.testing.assert_close(t, smooth_labels(want, eps), rtol=0, atol=2e-6)
    assert (t>=0).all() and (t<=1+1e-6).all()

# --- losses

@st.composite
def losses(draw):
    "`(loss, prediction, target)`: of labels, with weights of the classes, smoothing and a label to ignore, or of numbers; any reduction"
    g,n,c = generator(draw(seeds)),draw(st.integers(1, 7)),draw(st.integers(2, 6))
    pred,reduction = torch.randn(n, c, generator=g),draw(st.sampled_from(['mean', 'sum', 'none']))
    weight = draw(st.sampled_from([None, torch.rand(c, generator=g)+.1]))
    if draw(st.booleans()):
        f = draw(st.sampled_from([MSELossFlat, nn.MSELoss, nn.L1Loss, nn.HuberLoss, nn.SmoothL1Loss, BCEWithLogitsLossFlat, nn.BCEWithLogitsLoss]))
        return f(reduction=reduction),pred,torch.rand(n, c, generator=g)
    y = torch.randint(c, (n,), generator=g)
    f = draw(st.sampled_from([CrossEntropyLossFlat, nn.CrossEntropyLoss, LabelSmoothingCrossEntropy, FocalLossFlat]))
    kw = dict(weight=weight) if f is not FocalLossFlat else {}
    if f in (CrossEntropyLossFlat, nn.CrossEntropyLoss): kw |= dict(label_smoothing=draw(st.sampled_from([0., .1])), ignore_index=draw(st.sampled_from([-100, 0])))
    return f(reduction=reduction, **kw),pred,y

def value_and_gradient(f, pred, y):
    pred = pred.clone().requires_grad_()
    l = f(pred, y)
    l.sum().backward()
    return l.detach(),pred.grad

@given(losses(), st.sampled_from(MODES), seeds)
def test_all_weights_1_is_plain_training(case, mode, seed):
    "Value and gradient are those of the user's loss on the user's target"
    f,pred,y = case
    plan = draw_mixup(make_rng(seed), len(y), 0., mode=mode)
    mixed = mix_continuous(y, plan) if y.is_floating_point() else mix_one_hot(y, plan, pred.shape[1])
    got,want = value_and_gradient(MixedLoss(f, (y,), plan, (mixed,)), pred, mixed),value_and_gradient(f, pred, y)
    for a,b in zip(got, want): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)

# --- checkpoints

dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64])
shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = st.builds(lambda d,s: torch.ones(s).to(d), dtypes, shapes)
arrays = st.builds(lambda d,s: np.ones(s, d), st.sampled_from(['f4', '>f8', 'i8', 'u1', '?', 'c16', 'U3', 'S2', 'M8[s]']), shapes)
words = st.text(max_size=4) | st.sampled_from(['fastmix', 'data', 'of', 'state', 'tuple', '\ud800'])
keys = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words | st.tuples(st.integers(), words)
hashable = keys | st.binary(max_size=4) | st.complex_numbers(allow_nan=False) | st.frozensets(st.integers(), max_size=3)
leaves = hashable | st.floats() | tensors | arrays | st.builds(np.float32, st.floats(width=32)) | words.map(lambda s: Path(s.replace('\0', '')))
def containers(inner):
    some = st.lists(inner, max_size=4)
    return (some | some.map(tuple) | some.map(L) | some.map(deque) | some.map(lambda o: deque(o, 5)) | st.sets(hashable, max_size=3)
            | st.dictionaries(keys, inner, max_size=4) | st.dictionaries(keys, inner, max_size=4).map(OrderedDict)
            | st.dictionaries(keys, inner, max_size=4).map(lambda d: defaultdict(None, d)) | st.lists(keys, max_size=4).map(Counter)
            | st.lists(st.floats(), min_size=9, max_size=12) | st.lists(st.builds(torch.tensor, st.floats(width=32)), min_size=9, max_size=10))
values = st.recursive(leaves, containers, max_leaves=8)

def equal(a, b):
    "Is `b` of the type and the value of `a`, all the way down?"
    if type(a) is not type(b): return False
    if isinstance(a, torch.Tensor): return a.dtype==b.dtype and a.shape==b.shape and torch.allclose(a, b, 0, 0, equal_nan=True)
    if isinstance(a, (np.ndarray, np.generic)): return a.dtype==b.dtype and a.shape==b.shape and a.tobytes()==b.tobytes()
    if isinstance(a, (list, tuple, L, deque)): return len(a)==len(b) and getattr(a, 'maxlen', 0)==getattr(b, 'maxlen', 0) and all(map(equal, a, b))
    if isinstance(a, dict): return len(a)==len(b) and all(equal(k, l) and equal(v, w) for (k,v),(l,w) in zip(a.items(), b.items()))
    return a==b and repr(a)==repr(b) if isinstance(a, (float, complex)) and a==a else a==b or a!=a and b!=b

@given(values)
def test_a_plain_form_there_and_back(o):
    "Through a file that is read without running code"
    plain = to_plain(o)
    assert equal(o, from_plain(plain))
    f = io.BytesIO()
    torch.save(plain, f)
    f.seek(0)
    assert equal(o, from_plain(torch.load(f, weights_only=True)))

described = st.recursive(st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=2),
                         lambda o: st.lists(o, max_size=3) | st.dictionaries(st.text(max_size=2), o, max_size=3), max_leaves=6)

@given(described, described)
def test_to_differ_is_mutual(a, b):
    assert same_value(a, a) and same_value(a, b)==same_value(b, a)

# --- schedules

points = st.floats(0, 1) | st.integers(0, 12)
curves = st.sampled_from([SchedLin, SchedCos])
def same_kind(a, b): return type(a) is type(b) and a>b
single = (st.builds(warm_up, points, share, curves)
          | st.tuples(points, points, curves).filter(lambda o: not same_kind(o[1], o[0])).map(lambda o: off_after(*o))
          | st.tuples(points, points).filter(lambda o: not same_kind(*o)).map(lambda o: hesitation(*o))
          | st.builds(MixSchedule, share | st.builds(SchedCos, share, share), share | st.builds(SchedLin, share, share)))
schedules = st.recursive(single, lambda o: st.builds(lambda a,b: a*b, o, o), max_leaves=4)

@given(schedules, schedules, share, st.integers(1, 20))
def test_products_of_schedules(a, b, pct, n_epoch):
    "Factors are in [0,1], and a product's are the products of its parts'"
    p,q,both,swapped = (o(pct, n_epoch) for o in (a, b, a*b, b*a))
    for o in (p, q, both):
        assert 0<=o.prob<=1 and 0<=o.strength<=1
    assert np.allclose(both, (p.prob*q.prob, p.strength*q.strength), rtol=0, atol=1e-9) and both==swapped
