"Every method, mode, dtype, memory format and shape against a slow, obvious reference; distributions of the newer methods; RecursiveMix's memory."
import copy, math, pickle
from functools import partial
import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import *
from fastai.torch_core import TensorImage, set_seed
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from fastmix.blend import *
from fastmix.callback import *
from fastmix.draw import *
from fastmix.plan import *
from fastmix.target import move_labels
from slow import slow, slow_move

# --- blend

def recursive(rng, n, size, mode='elem', **kw): return draw_recursivemix(rng, n, 5, size, mode=mode, **kw)
methods = dict(
    mixup=lambda rng,n,size,**kw: draw_mixup(rng, n, 1., **kw), mixup_unfolded=lambda rng,n,size,**kw: draw_mixup(rng, n, 1., fold=False, **kw),
    cutmix=draw_cutmix, cutmix_minmax=partial(draw_cutmix, minmax=(.2,.7)), cutmixup=partial(draw_cutmixup, mix_alpha=1.), resizemix=draw_resizemix,
    fmix=draw_fmix, fmix_soft=partial(draw_fmix, max_soft=.3), recursivemix=recursive)
shapes = {'one':(1,3,8,8), 'odd':(5,3,9,14), 'even':(6,1,8,8), 'sequence':(5,2,17), 'volume':(4,2,6,7,5), 'row':(5,6)}
dtypes = {torch.float32:2e-6, torch.float16:4e-3, torch.bfloat16:3e-2, torch.float64:1e-7}

def formats(x):
    "The batch in each memory format that it can have"
    yield 'contiguous',x
    if x.ndim==4: yield 'channels_last',x.to(memory_format=torch.channels_last)
    if x.ndim==5: yield 'channels_last_3d',x.to(memory_format=torch.channels_last_3d)
    yield 'strided',torch.stack([x,x], -1)[...,0]

@pytest.mark.every(5)
@pytest.mark.parametrize('dtype', dtypes, ids=lambda o: str(o)[6:])
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', methods)
@pytest.mark.parametrize('shape', shapes)
def test_against_the_slow_reference(shape, name, mode, dtype):
    n,c,*size = shapes[shape]
    if not size and 'mixup' not in name or name=='cutmixup' and not size: pytest.skip('nothing to cut')
    rng = make_rng(0)
    x0 = torch.rand(n, c, *size).to(dtype)
    source = torch.rand(5, c, *[s+1 for s in size]).to(dtype) if name=='recursivemix' else None
    for rep in range(3):
        plan = methods[name](rng, n, tuple(size), mode=mode)
        for fmt,x in formats(x0):
            before = x.clone()
            out = blend(x, plan, source=source)
            torch.testing.assert_close(out.double(), slow(x, plan, source) if plan.mixes else x.double(), rtol=0, atol=dtypes[dtype])
            assert out.dtype==dtype and out.shape==x.shape and torch.equal(x, before)
            if fmt!='strided': assert out.stride()==x.stride(), fmt
            if not plan.mixes: continue
            t = x.clone().requires_grad_()                                     # hidden activations: the same, with gradients
            torch.testing.assert_close(blend(t, plan, source=source), out, rtol=0, atol=dtypes[dtype])
            own = x.clone()
            assert blend(own, plan, inplace=True, source=source) is own and torch.equal(own, out)

@pytest.mark.every(5)
@pytest.mark.parametrize('fmt', [torch.contiguous_format,torch.channels_last], ids=lambda o: str(o)[6:])
@pytest.mark.parametrize('n', [5,8])
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', ['mixup','cutmix','cutmixup','fmix'])
def test_in_place_of_large_pictures(name, mode, n, fmt):
    "Large pictures, in place"
    x,rng,seen = torch.rand(n, 3, 280, 280).to(memory_format=fmt),make_rng(1),set()
    for _ in range(6):
        plan = methods[name](rng, n, (280,280), mode=mode)
        seen.add(plan.partner)
        own = x.clone()
        want = blend(x, plan)
        assert blend(own, plan, inplace=True) is own
        torch.testing.assert_close(own, want, rtol=0, atol=2e-6)
        assert own.stride()==x.stride()
    assert seen=={'mirror'} if mode=='pair' else len(seen)>1

@pytest.mark.parametrize('name', ['mixup','cutmix','cutmixup','resizemix','fmix','fmix_soft','recursivemix'])
@pytest.mark.parametrize('mode', MODES)
def test_gradients(name, mode):
    "What flows back to the batch is what the reference lets flow back"
    plan = methods[name](make_rng(1), 5, (6,7), mode=mode)
    x,source = torch.rand(5,2,6,7, dtype=torch.float64),torch.rand(5,2,5,5, dtype=torch.float64) if name=='recursivemix' else None
    w,grads = torch.rand_like(x),[]
    for f in (blend, slow):
        t = x.clone().requires_grad_()
        (f(t, plan, source=source)*w).sum().backward()
        grads.append(t.grad)
    torch.testing.assert_close(*grads, rtol=0, atol=1e-6)

@pytest.mark.parametrize('draw', [draw_cutmix, draw_resizemix, draw_fmix], ids=lambda f: f.__name__)
def test_types_and_metadata_are_kept(draw):
    x = TensorImage(torch.rand(4,3,8,8)); x.img_size = (8,8)
    out = blend(x, draw(make_rng(0), 4, (8,8)))
    assert type(out) is TensorImage and out.img_size==(8,8)

# --- labels that go where their pixels go

@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', ['cutmix','cutmix_minmax','resizemix','fmix','recursivemix'])
def test_masks_move_with_their_pixels(name, mode):
    y = torch.randint(0, 5, (5,9,14))
    source = torch.randint(0, 5, (5,8,11)) if name=='recursivemix' else None
    for rep in range(5):
        plan = methods[name](make_rng(rep), 5, (9,14), mode=mode)
        want = slow_move(y, plan, source)
        assert torch.equal(move_labels(y, plan, source), want)
        assert torch.equal(move_labels(y[:,None], plan, None if source is None else source[:,None]), want[:,None])     # with a channel
        if not plan.resize: torch.testing.assert_close(blend(y.double()[:,None], plan)[:,0], want.double())          # just like the picture

# --- distributions

@pytest.mark.parametrize('size', [(32,48), (100,), (9,10,11)])
@pytest.mark.parametrize('soft', [0., .2])
@pytest.mark.parametrize('mode', MODES)
def test_fmix_keeps_what_lam_says(monkeypatch, size, soft, mode):
    "To the pixel: the map is made after the weight, which is within one pixel of what was drawn"
    drawn,draw,pixels = [],draw_lam,math.prod(size)
    def record(*args, **kwargs): drawn.append(draw(*args, **kwargs)); return drawn[-1]
    monkeypatch.setattr('fastmix.draw.draw_lam', record)
    for seed in range(5):
        plan,k = draw_fmix(make_rng(seed), 8, size, max_soft=soft, mode=mode),n_draws(8, mode)
        keep = pixels-plan.mask.on('cpu').double().sum(tuple(range(1,2+len(size))))
        torch.testing.assert_close(keep, torch.tensor(plan.lam[:len(keep)].astype(float)*pixels), rtol=1e-6, atol=1e-3)
        assert (abs(plan.lam[:k]*pixels - drawn[-1]*pixels) <= 1).all()

def test_fmix_clouds_are_smooth_and_fair():
    "The higher `decay`, the shorter the contour; every pixel is cut as often as any other"
    m = [draw_fmix(make_rng(0), 400, (24,24), decay=d).mask.on('cpu').float() for d in (0.,1.5,3.)]
    edges = [(o.diff(dim=-1).abs().mean() + o.diff(dim=-2).abs().mean()).item() for o in m]
    assert edges[0] > 2*edges[1] > 4*edges[2]
    p = m[2].mean((0,1))
    assert abs(p.mean()-.5)<.03 and p.std()<.05

@pytest.mark.parametrize('size,tol', [((224,224),.004), ((64,96),.012)])
def test_resizemix_area(size, tol):
    "Sides U(.1,.8) around a uniform centre, clipped: the mean area is that of (τ-τ²/4)²"
    area = 1-draw_resizemix(make_rng(0), 200_000, size).lam
    tau = np.linspace(.1, .8, 100_001)
    assert abs(area.mean()-((tau-tau**2/4)**2).mean()) < tol
    assert area.max() <= .64

@pytest.mark.parametrize('draw', [draw_resizemix, draw_fmix, partial(draw_recursivemix, n_last=8)], ids=['resizemix','fmix','recursivemix'])
def test_prob_and_strength(draw):
    rng = make_rng(0)
    lam = np.concatenate([draw(rng, n=8, size=(40,40), mode='elem', prob=.6).lam for _ in range(800)])
    assert abs((lam<1).mean()-.6)<.03
    full,half = (np.concatenate([draw(rng, n=8, size=(40,40), mode='elem', strength=s).lam for _ in range(800)]) for s in (1.,.5))
    assert .4 < (1-half).mean()/(1-full).mean() < .62
    assert not draw(rng, n=8, size=(40,40), prob=0.).mixes and not draw(rng, n=8, size=(40,40), strength=0.).mixes
    skipped = [draw(rng, n=8, size=(40,40), mode='batch', prob=.5).mixes for _ in range(300)]
    assert 100 < sum(skipped) < 200

# --- RecursiveMix in a fit

def batches(sizes, seed=0, k=4):
    "A list of batches (x,y), each of its own size"
    g = torch.Generator().manual_seed(seed)
    return [(torch.rand(*s, generator=g), torch.randint(0, k, (s[0],), generator=g)) for s in sizes]

def pooled(c=1, k=4): return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4*c,k))
def quiet(learn):
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ in ('ProgressCallback','Recorder')])
    return learn

class Watch(Callback):
    "Keeps what the model and the loss get"
    order,run_valid = 1,False
    def __init__(self): self.seen = []
    def after_pred(self):
        cb = next(o for o in self.learn.cbs if isinstance(o, MixHandler))
        self.seen.append((self.learn.x.clone(), self.learn.y.clone(), copy.deepcopy(cb.plan)))

@pytest.mark.parametrize('mode', MODES)
def test_recursivemix_remembers(mode):
    "A hundred batches, the last shorter, sizes that change: pictures and weights of all labels as a slow account of them says"
    sizes = [(8,1,10,12)]*60 + [(8,1,14,9)]*39 + [(3,1,14,9)]
    data = batches(sizes)
    w = Watch()
    learn = quiet(Learner(DataLoaders(data, data[:1]), pooled(), loss_func=nn.CrossEntropyLoss(), cbs=[RecursiveMix(mode=mode),w]))
    learn.fit(1)
    assert len(w.seen)==100
    last = None
    for (x,y),(mx,my,plan) in zip(data, w.seen):
        labels = F.one_hot(y, 4).double()
        if last is not None and plan.mixes:
            px,py = last
            want = slow(x, plan, px)
            lam = torch.tensor(plan.lam, dtype=torch.float64)[:,None]
            labels = lam*labels + (1-lam)*py[torch.tensor(plan.idx)]
            torch.testing.assert_close(mx.double(), want, rtol=0, atol=1e-5)
            torch.testing.assert_close(my.double(), labels, rtol=0, atol=1e-5)
            torch.testing.assert_close(my.sum(1), torch.ones(len(y)), rtol=0, atol=1e-5)
            x = mx
        last = x.double(),labels
    many = ((labels>1e-6).sum(1)).max()
    assert many>2                                             # a label of more than two parts: the memory goes further back than one batch
    assert learn.recursive_mix.memory is None

def test_recursivemix_smooths_once():
    data = batches([(8,1,8,8)]*20)
    w = Watch()
    quiet(Learner(DataLoaders(data, data[:1]), pooled(), loss_func=nn.CrossEntropyLoss(), cbs=[RecursiveMix(label_smoothing=.1),w])).fit(1)
    for mx,my,plan in w.seen:
        torch.testing.assert_close(my.sum(1), torch.ones(len(my)), rtol=0, atol=1e-5)
        assert abs(my.min()-.1/4)<1e-4                        # exactly one share of ε for the classes that have nothing

def test_recursivemix_memory_is_dropped():
    data = batches([(8,1,8,8)]*3)
    cb = RecursiveMix()
    learn = quiet(Learner(DataLoaders(data, data[:1]), pooled(), loss_func=nn.CrossEntropyLoss(), cbs=cb))
    starts = []
    class First(Callback):
        order,run_valid = 1,False
        def after_pred(self):
            if self.iter==0: starts.append(cb.plan.mixes)
    learn.fit(2, cbs=First())
    assert starts==[False,False]                              # each epoch starts with nothing to remember
    class Stop(Callback):
        def after_pred(self): raise RuntimeError('stop')
    cb.memory = data[0]
    assert pickle.loads(pickle.dumps(cb)).memory is None and copy.deepcopy(cb).memory is None
    with pytest.raises(RuntimeError): learn.fit(1, cbs=Stop())
    learn.fit(1)
    assert cb.memory is None

def test_recursivemix_losses():
    "Cross-entropies with weights, `ignore_index` and their own smoothing count each part of a label; others are refused by name"
    W = torch.tensor([.5,2.,1.,3.])
    data = batches([(8,1,8,8)]*4)
    for f,say in [(CrossEntropyLossFlat(weight=W), None), (nn.CrossEntropyLoss(ignore_index=2), None), (LabelSmoothingCrossEntropyFlat(), None),
                  (F.cross_entropy, None), (FocalLossFlat(), 'FocalLossFlat cannot take soft targets.*RecursiveMix')]:
        torch.manual_seed(0)
        losses = []
        class Losses(Callback):
            run_valid = False
            def after_loss(self):
                losses.append((self.learn.loss.detach(), self.learn.pred.detach(), self.learn.y))
        learn = quiet(Learner(DataLoaders(data, data[:1]), pooled(), loss_func=f, cbs=[RecursiveMix(),Losses()]))
        if say:
            with pytest.raises(ValueError, match=say): learn.fit(1)
            assert learn.loss_func is f
            continue
        learn.fit(1)
        for l,p,t in losses[1:]:                                  # the first batch has nothing to mix with
            logp,w = F.log_softmax(p, 1),torch.ones(4)
            if f is F.cross_entropy: want = F.cross_entropy(p, t)
            elif isinstance(f, LabelSmoothingCrossEntropyFlat): want = .9*F.cross_entropy(p, t) - .1*logp.mean()
            elif isinstance(f, CrossEntropyLossFlat): want = -(t*W*logp).sum()/(t*W).sum()
            else:
                w[2] = 0
                want = -(t*w*logp).sum()/(t*w).sum()
            torch.testing.assert_close(l, want, rtol=1e-5, atol=1e-5)

# --- every callback

family = dict(MixUp=MixUp, CutMix=CutMix, CutMixUp=CutMixUp, ResizeMix=ResizeMix, FMix=FMix, soft=partial(FMix, max_soft=.3), RecursiveMix=RecursiveMix)

@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', family)
def test_callbacks_mix_what_the_plan_says(name, mode):
    "The model sees the reference's pictures; the caller's batches stay as they are; an odd batch and one of a single sample included"
    data = batches([(8,1,9,7)]*4 + [(5,1,9,7), (1,1,9,7)])
    before = copy.deepcopy(data)
    w = Watch()
    learn = quiet(Learner(DataLoaders(data, data[:1]), pooled(), loss_func=nn.CrossEntropyLoss(), cbs=[family[name](mode=mode),w]))
    learn.fit(1)
    last = None
    for (x,y),(x0,y0),(mx,my,plan) in zip(data, before, w.seen):
        assert torch.equal(x, x0) and torch.equal(y, y0)
        if plan.mixes:
            torch.testing.assert_close(mx.double(), slow(x, plan, last if name=='RecursiveMix' else None), rtol=0, atol=1e-5)
            lam,t = torch.tensor(plan.lam)[:,None],F.one_hot(y, 4).float()
            if name!='RecursiveMix': torch.testing.assert_close(my, lam*t + (1-lam)*t[torch.tensor(plan.idx)], rtol=0, atol=1e-6)
        last = mx

@pytest.mark.parametrize('name', family)
def test_a_seed_repeats_a_run(name):
    data = batches([(8,1,8,8)]*5)
    def run():
        set_seed(3)
        w = Watch()
        learn = quiet(Learner(DataLoaders(data, data[:1]), pooled(), loss_func=nn.CrossEntropyLoss(), cbs=[family[name](),w]))
        learn.fit(2)
        return torch.cat([o[0] for o in w.seen]), torch.cat([p.flatten() for p in learn.model.parameters()]), torch.rand(1)
    a,b = run(),run()
    for p,q in zip(a,b): assert torch.equal(p,q)

class Syncs(TorchDispatchMode):
    "Notes every operation that reads a tensor's value on the host, or whose result's shape depends on values"
    names = ('_local_scalar_dense','nonzero','masked_select','is_nonzero','equal','unique','bincount')
    def __init__(self): super().__init__(); self.found = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(o in func.__name__ for o in self.names): self.found.append(func.__name__)
        if func.__name__.startswith('index.') and any(isinstance(o, torch.Tensor) and o.dtype==torch.bool for o in args[1] or ()): self.found.append('bool index')
        return func(*args, **(kwargs or {}))

@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', list(family)+['close'])
@pytest.mark.parametrize('kind', ['label','mask','number'])
def test_nothing_is_read_on_the_host(monkeypatch, name, mode, kind):
    "From the draw to the loss; the same test finds a sync where there is one"
    if name=='close' and (mode=='pair' or kind!='number'): pytest.skip('refused')
    monkeypatch.setattr('fastmix.tensors._known_finite', lambda a,b: False)         # what only a CPU is asked
    x = torch.rand(6,1,8,8)
    y = dict(label=torch.randint(0,4,(6,)), mask=torch.randint(0,4,(6,8,8)), number=torch.rand(6,4))[kind]
    data,syncs = [(x,y)]*3,Syncs()
    class Guard(Callback):
        run_valid = False
        def __init__(self, first): self.order = MixHandler.order + (-1 if first else 1)
        def before_batch(self):
            if self.order<MixHandler.order: syncs.__enter__()
        def after_loss(self):
            if self.order>MixHandler.order: syncs.__exit__(None, None, None)
    model = nn.Conv2d(1,4,1) if kind=='mask' else pooled()
    cb = MixUp(partner='close', mode=mode) if name=='close' else family[name](mode=mode)
    loss = nn.MSELoss() if kind=='number' else nn.CrossEntropyLoss()
    quiet(Learner(DataLoaders(data, data[:1]), model, loss_func=loss, cbs=[cb,Guard(True),Guard(False)])).fit(1)
    assert syncs.found==[]
    with syncs: x.max().item(); x[x>.5]
    assert len(syncs.found)>=2

def test_bad_arguments_are_refused_when_made():
    for make,says in [(lambda: ResizeMix((.1,)), 'scope='), (lambda: ResizeMix(None), 'scope=None'), (lambda: ResizeMix((.5,1.2)), r'scope\[1\]=1.2'), (lambda: FMix(-1), 'alpha=-1'),
                      (lambda: FMix(decay='a'), "decay='a'"), (lambda: FMix(max_soft=.7), 'max_soft=0.7'), (lambda: RecursiveMix(1.5), 'alpha=1.5'),
                      (lambda: MixUp(partner='near'), "partner='near'.*'random', 'close'"), (lambda: MixUp(partner='close', mode='pair'), "mode='pair'"),
                      (lambda: MixUp(partner='close', bandwidth=0), 'bandwidth=0'), (lambda: MixUp(bandwidth=1.), 'bandwidth=1.0'), (lambda: MixUp(n_classes=(3,0)), 'n_classes=0'),
                      (lambda: MixUp(n_classes=True), 'n_classes=True'), (lambda: MixUp(n_classes=()), r'n_classes=\(\)'), (lambda: CutMix(correct_lam=np.ones(2)), 'correct_lam=array')]:
        with pytest.raises(ValueError, match=says): make()

def test_blend_refuses_what_does_not_fit():
    plan = draw_cutmix(make_rng(0), 4, (8,8))
    with pytest.raises(ValueError, match='holds 3 samples but the plan was drawn for 4'): blend(torch.rand(3,1,8,8), plan)
    with pytest.raises(ValueError, match=r'a plan over 2 dimensions needs \(n, channels, 2 sizes\)'): blend(torch.rand(4,8), plan)
    with pytest.raises(ValueError, match='only one, two or three can be resized'): blend(torch.rand(4,1,3,3,3,3), draw_resizemix(make_rng(0), 4, (3,3,3,3), (.9,.9)))
