"Every method on every kind of data: pictures, targets and losses are what a slow account says; the table in the docs is what happens."
import copy
from dataclasses import replace
from functools import partial
import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock, TransformBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import IndexSplitter
from fastai.learner import Learner
from fastai.losses import *
from fastai.torch_core import TensorImage, TensorMask, set_seed
from fastai.vision.data import ImageBlock, MaskBlock
from scipy import stats
from sklearn.datasets import load_diabetes
from torch import nn
from fastmix.callback import *
from fastmix.draw import *
from fastmix.plan import *
from fastmix.loss import MixedLoss
from fastmix.blend import blend
from fastmix.partners import close_partners
from fastmix.target import is_dense_target, mix_target
from digits import digits
from kinds import C, KINDS, METHODS, N, Batches, Words, attempt, per_pixel, saved, table
from slow import mask_of, slow, slow_move

def test_the_table_in_the_docs():
    assert saved()==table(), 'nbs/kinds.ipynb is behind: run python tests/kinds.py'

# --- what a method should have done to a batch, slowly

def placed(t, size): return t.ndim>2 and tuple(t.shape[2:])==tuple(size)

def want_input(x, plan, size, source):
    "Where boxes were drawn for it: as the plan says. A row of numbers, or a method without boxes: by the label's weight"
    if plan.size is None: return slow(x, Plan(plan.n, plan.weight, plan.lam, plan.partner), source)
    if x.ndim==2: return slow(x, Plan(plan.n, plan.lam, plan.lam, plan.partner), source)
    if x.shape[2:]==size: return slow(x, plan, source)
    scaled = plan
    if plan.box is not None: scaled = replace(scaled, box=np.rint(plan.box*(np.array(x.shape[2:])/np.array(size))[:,None]).astype(int))
    if plan.mask is not None:
        a,b = (torch.arange(o)*s//o for o,s in zip(x.shape[2:], size))
        scaled = replace(scaled, mask=mask_of(plan)[:,:,a][:,:,:,b])
    return slow(x, scaled, source)

def parts(y, plan, source):
    "Own and partner's target, dense, and the weight of the own, for each sample"
    s = y if source is None else source
    idx,lam = torch.as_tensor(plan.idx),torch.tensor(plan.lam)
    if y.ndim<3: return y,s[idx],lam
    w = torch.tensor(plan.weight)
    if plan.size is None: return y,s[idx],w
    own = slow_move(y, plan, source) if y.ndim==3 else slow(y, Plan(plan.n, np.ones_like(plan.weight), plan.lam, plan.partner, plan.box, plan.mask, plan.size, plan.resize), source).float()
    if y.ndim==4: s = s.float()
    cut = (w==1).view(-1, *[1]*(y.ndim-1))
    return own,torch.where(cut, own, s[idx]) if not plan.resize else own,w

def terms(kind, pred, yb):
    "Loss of each sample on targets that may be dense"
    def mean(l): return l.flatten(1).mean(1) if l.ndim>1 else l
    if kind.endswith('a label and a number'): return mean(F.cross_entropy(pred[0], yb[0], reduction='none')) + mean((pred[1]-yb[1])**2)
    y = yb[0]
    if kind.endswith('several labels'): return mean(F.binary_cross_entropy_with_logits(pred, y, reduction='none'))
    if kind.endswith('each pixel'): return mean((pred-y).abs())
    if kind.endswith('a number'): return mean((pred-y)**2)
    return mean(F.cross_entropy(pred, y, reduction='none'))

def dense(kind, i, y): return F.one_hot(y, C).float() if not y.is_floating_point() and y.ndim==1 else y

direct = [m for m in METHODS if m not in ('ManifoldMixUp','RICAP','ZetaMix')]                # several partners: test_several
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('method', direct)
def test_inputs_targets_and_loss(method, kind):
    batches,seen,error = attempt(method, kind)
    if error: return                                          # what the table says, checked above
    last,mixed,size = None,0,next((tuple(o.shape[2:]) for o in seen[0][0] if o.ndim>2), None)
    for b,(xb,yb,pred,loss,plan) in zip(batches, seen):
        n_in = len(xb)
        own,ls = [dense(kind, i, y) for i,y in enumerate(b[n_in:])],[]
        sources = [None]*len(b) if method!='RecursiveMix' or last is None else last
        if plan.mixes:
            mixed += 1
            for x,got,s in zip(b, xb, sources): torch.testing.assert_close(got.double(), want_input(x, plan, size, s), rtol=0, atol=1e-5)
            all_parts = [parts(y, plan, s) for y,s in zip(own, sources[n_in:])]
            for y,(o,p,w),got in zip(b[n_in:], all_parts, yb):
                w = w.view(-1, *[1]*(o.ndim-1))
                if o.is_floating_point(): torch.testing.assert_close(got.float(), w*o+(1-w)*p, rtol=0, atol=1e-5)   # what other callbacks see
                else: assert torch.equal(got, o)
            one,two = (terms(kind, pred, [o[k] for o in all_parts]) for k in (0,1))
            lam,regression = all_parts[0][2],kind.endswith((', a number','each pixel'))
            want = terms(kind, pred, yb) if regression else lam*one+(1-lam)*two                                    # the blended target, or two losses
            torch.testing.assert_close(loss, want.mean(), rtol=1e-5, atol=1e-5)
        else:
            for x,got in zip(b, xb): assert torch.equal(x, got)
            torch.testing.assert_close(loss, terms(kind, pred, b[n_in:]).mean(), rtol=1e-5, atol=1e-5)
        last = [*xb, *(yb if plan.mixes else own)]
    assert mixed>1

# --- masks: losses that want them whole, and soft edges

def learner(batches, model, loss, cb, **kw):
    learn = Learner(DataLoaders(Batches(batches, 1), Batches(batches[:1], 1)), model, loss_func=loss, cbs=cb, **kw)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ in ('ProgressCallback','Recorder')])
    return learn

def mask_batches(k=4): return [(torch.rand(N,3,16,16), torch.randint(0,C,(N,16,16))) for _ in range(k)]

class Seen(Callback):
    order,run_valid = 1,False
    def __init__(self): self.seen = []
    def after_loss(self):
        cb = next(o for o in self.learn.cbs if isinstance(o, MixHandler))
        self.seen.append((self.learn.pred, self.learn.y, self.learn.loss.detach(), copy.copy(cb.plan), self.learn.loss_func))

@pytest.mark.parametrize('make', [CutMix, partial(CutMix, correct_lam=False), ResizeMix, FMix, RecursiveMix], ids=['CutMix','uncorrected','ResizeMix','FMix','RecursiveMix'])
@pytest.mark.parametrize('loss', [DiceLoss(), CrossEntropyLossFlat(axis=1), FocalLossFlat(axis=1), lambda p,t: F.cross_entropy(p,t)], ids=['dice','ce_flat','focal','function'])
def test_moved_masks_need_no_other_loss(make, loss):
    "Hard labels, and the user's own loss on them, whatever it is"
    s,data = Seen(),mask_batches()
    learner(data, per_pixel(C), loss, [make(),s]).fit(1)
    for pred,y,l,plan,f in s.seen:
        assert y.dtype==torch.int64 and f is loss
        torch.testing.assert_close(l, torch.as_tensor(loss(pred, y)))

@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(axis=1), nn.CrossEntropyLoss(), nn.CrossEntropyLoss(ignore_index=2), FocalLossFlat(axis=1)], ids=str)
@pytest.mark.parametrize('mode', MODES)
def test_soft_edges_mix_the_loss_for_each_pixel(loss, mode):
    s,data = Seen(),mask_batches()
    learner(data, per_pixel(C), loss, [FMix(max_soft=.4, mode=mode),s]).fit(1)
    for (x,y),(pred,_,l,plan,_) in zip(data, s.seen):
        lam = (1-mask_of(plan)[:,0]).expand(y.shape)
        each = dict(mean=F.cross_entropy, focal=lambda p,t,**kw: FocalLoss(reduction='none')(p,t))['focal' if 'Focal' in str(loss) else 'mean']
        a,b = (each(pred, t, reduction='none', ignore_index=getattr(loss, 'ignore_index', -100)) for t in (y,y[torch.tensor(plan.idx)]))
        n = y.numel() if getattr(loss, 'ignore_index', -100)<0 else (lam*(y!=2)+(1-lam)*(y[torch.tensor(plan.idx)]!=2)).sum()
        torch.testing.assert_close(l, (lam*a+(1-lam)*b).sum()/n, rtol=1e-5, atol=1e-5)
    assert any(((mask_of(o[3])>0) & (mask_of(o[3])<1)).any() for o in s.seen)

@pytest.mark.parametrize('axis,shape', [(1,(3,C,5,7)), (-1,(3,5,7,C)), (1,(3,C,6))])
def test_unreduced_losses_keep_the_users_order(axis, shape):
    "fastai's losses flatten a mask in an order of their own; weights of 1 give exactly that"
    pred,y = torch.randn(shape),torch.randint(0, C, [s for i,s in enumerate(shape) if i!=axis%len(shape)])
    f,plan = CrossEntropyLossFlat(axis=axis, reduction='none'),Plan(3, *[np.ones(3, np.float32)]*2, partner=1)
    torch.testing.assert_close(MixedLoss(f, (y,), plan, (y,))(pred, y), f(pred, y).as_subclass(torch.Tensor))

def test_soft_edges_and_a_loss_without_pixels():
    with pytest.raises(ValueError, match="max_soft=0"): learner(mask_batches(), per_pixel(C), DiceLoss(), FMix(max_soft=.4)).fit(1)

def test_mixup_on_masks_builds_no_one_hot():
    "Two look-ups: the masks stay whole numbers, and the loss is that of each pixel, mixed"
    s,data = Seen(),mask_batches()
    learner(data, per_pixel(C), CrossEntropyLossFlat(axis=1), [MixUp(),s]).fit(1)
    for (x,y),(pred,t,l,plan,_) in zip(data, s.seen):
        assert torch.equal(t, y)
        lam,a,b = torch.tensor(plan.lam),*(F.cross_entropy(pred, o, reduction='none').flatten(1).mean(1) for o in (y,y[torch.tensor(plan.idx)]))
        torch.testing.assert_close(l, (lam*a+(1-lam)*b).mean(), rtol=1e-5, atol=1e-5)

def test_fastai_segmentation_keeps_its_types():
    "Pictures and masks from a DataBlock: `TensorImage` and `TensorMask` in the batch that the model gets, masks of another size as well"
    imgs = [np.uint8(np.random.rand(16,16,3)*255) for _ in range(16)]
    def mask(i, k=1): return np.uint8(np.arange(16*16).reshape(16,16)[::k,::k]%C)
    for k in (1,2):
        block = DataBlock((ImageBlock, MaskBlock(range(C))), get_x=lambda i: imgs[i], get_y=lambda i: mask(i, k), splitter=IndexSplitter(range(4)))
        dls = block.dataloaders(list(range(16)), bs=4, num_workers=0)
        model = per_pixel(C) if k==1 else nn.Sequential(nn.AvgPool2d(2), per_pixel(C))
        for cb in (CutMix(), ResizeMix(), FMix(), RecursiveMix(), CutMixUp(), MixUp()):
            types = []
            class Types(Callback):
                order,run_valid = MixHandler.order+1,False                 # before fastai's CastToTensor
                def before_batch(self): types.append((type(self.learn.x), type(self.learn.y), self.learn.y.dtype))
            learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(axis=1), cbs=[cb,Types()])
            with learn.no_bar(), learn.no_logging(): learn.fit(1)
            assert set(types)=={(TensorImage,TensorMask,torch.int64)}

# --- maps of numbers, and what is no tensor

@pytest.mark.parametrize('draw', [draw_cutmix, draw_cutmixup, draw_fmix, partial(draw_fmix, max_soft=.3), draw_resizemix], ids=['CutMix','CutMixUp','FMix','soft','ResizeMix'])
@pytest.mark.parametrize('mode', MODES)
def test_maps_are_blended_where_the_picture_is(draw, mode):
    "Depth `(n,H,W)`, channels `(n,c,H,W)`, twice or half the size: at their own scale what was done to the picture"
    x = torch.rand(6,1,8,8)
    x = F.interpolate(x, scale_factor=2)                               # so that half the size loses nothing
    for seed in range(5):
        plan = draw(make_rng(seed), 6, (16,16), mode=mode)
        if plan.box is not None: plan = replace(plan, box=plan.box//2*2)
        want = blend(x, plan)
        torch.testing.assert_close(mix_target(x[:,0], plan).mixed, want[:,0])
        torch.testing.assert_close(mix_target(x.expand(-1,3,-1,-1), plan).mixed, want.expand(-1,3,-1,-1))
        if draw is draw_resizemix: continue                            # it takes other pixels of a larger picture
        torch.testing.assert_close(mix_target(F.interpolate(x, scale_factor=2), plan).mixed, F.interpolate(want, scale_factor=2))
        if plan.box is not None: torch.testing.assert_close(mix_target(x[:,0,::2,::2], plan).mixed, want[:,0,::2,::2])

def test_rotations_have_no_place():
    "A matrix of numbers is no map, unless its sides are the picture's, or the same whole number larger or smaller"
    plan = draw_cutmix(make_rng(0), 4, (32,32), mode='elem')
    for shape,place in (((4,3,3),False), ((4,2,2),False), ((4,32,32),True), ((4,16,16),True), ((4,4,4),True), ((4,16,8),False), ((4,64,64),True)):
        assert is_dense_target(torch.rand(shape), plan)==place, shape

def test_what_is_no_tensor_stays():
    for y in (list('abcd'), [{'box':torch.rand(2,4)}]*4, None):
        t = mix_target(y, draw_mixup(make_rng(0), 4))
        assert t.mixed is y and t.own is t.partner is y

# --- several inputs and targets, as fastai's DataBlock makes them

def test_several_categories_and_a_number():
    "One-hot rows of the right width for each; the loss that the user wrote for all three"
    x,y = digits()
    block = DataBlock((TransformBlock, CategoryBlock, CategoryBlock, RegressionBlock), n_inp=1, get_x=lambda i: torch.tensor(x[i][None]),
                      get_y=[lambda i: y[i], lambda i: y[i]%2, lambda i: float(y[i])], splitter=IndexSplitter(range(32)))
    dls = block.dataloaders(list(range(128)), bs=32, num_workers=0)
    class Heads(nn.Module):
        def __init__(self): super().__init__(); self.heads = nn.ModuleList(nn.Linear(64,k) for k in (10,2,1))
        def forward(self, x): return tuple(h(x.flatten(1)) for h in self.heads)
    def loss(p, a, b, c): return F.cross_entropy(p[0], a) + F.cross_entropy(p[1], b) + F.mse_loss(p[2][:,0], c)
    for n_classes in (None, (10,2,None)):
        shapes = []
        class Shapes(Callback):
            order,run_valid = 1,False
            def after_pred(self): shapes.append([tuple(t.shape[1:]) for t in self.learn.yb])
        for cb in (MixUp(n_classes=n_classes), CutMix(n_classes=n_classes), RecursiveMix(n_classes=n_classes)):
            learn = Learner(dls, Heads(), loss_func=loss, cbs=[cb,Shapes()])
            with learn.no_bar(), learn.no_logging(): learn.fit(1)
            assert shapes[-1]==[(10,),(2,),()] and torch.isfinite(learn.recorder.losses[-1])

# --- partners that are close

def test_close_partners_follow_the_kernel():
    "Drawn in proportion to exp(-d²/2h²), nobody's own self"
    y,h = torch.tensor([0.,.3,1.,1.2,3.,9.]),.8
    want = torch.exp(-(y[:,None]-y[None]).double()**2/(2*h**2)).fill_diagonal_(0)
    want = want/want.sum(1, keepdim=True)
    draws = torch.stack([close_partners(y, s, h) for s in range(4000)])
    for i in range(5):
        seen,p = torch.bincount(draws[:,i], minlength=6).numpy(),want[i].numpy()
        keep = p*4000>5
        assert seen[i]==0 and stats.chisquare(seen[keep], p[keep]/p[keep].sum()*seen[keep].sum()).pvalue>.001
    several = torch.rand(5,3)
    assert close_partners(several, 0).shape==(5,) and (close_partners(several, 0)!=torch.arange(5)).all()
    assert close_partners(torch.ones(4), 0).tolist() != [0,1,2,3] and close_partners(torch.ones(1), 0).tolist()==[0]
    scale = [close_partners(torch.linspace(0,1,64)*k, 7) for k in (1,1000)]
    assert torch.equal(*scale)                                # the default bandwidth has no unit

def test_close_partners_in_a_fit():
    d = load_diabetes()
    x,y = torch.tensor(d.data, dtype=torch.float)*20,torch.tensor((d.target-d.target.mean())/d.target.std(), dtype=torch.float)[:,None]
    batches = [(x[i],y[i]) for i in torch.randperm(len(x)).split(64)]
    def distance(cb):
        gaps = []
        class Gap(Callback):
            order,run_valid = 1,False
            def after_pred(self): i = self.learn.iter; gaps.append((batches[i][1]-batches[i][1][cb.idx]).abs().mean())
        learner(batches, nn.Sequential(nn.Linear(10,16), nn.ReLU(), nn.Linear(16,1)), nn.MSELoss(), [cb,Gap()]).fit(1)
        return torch.stack(gaps).mean()
    a,b,c = (distance(cb) for cb in (MixUp(), MixUp(partner='close'), MixUp(partner='close', bandwidth=.05, mode='batch')))
    assert a > 2*b > 4*c
    with pytest.raises(ValueError, match="partner='close' compares targets as numbers"): learner([(torch.rand(4,2),torch.zeros(4).long())], nn.Linear(2,3), nn.CrossEntropyLoss(), MixUp(partner='close')).fit(1)

def test_close_partners_and_missing_numbers():
    "A target that is NaN or infinite is nobody's partner, and does not hide the others' closeness"
    y = torch.tensor([0.,torch.nan,.1,torch.inf,5.,5.1])
    for bandwidth in (None, .5):
        draws = torch.stack([close_partners(y, s, bandwidth) for s in range(300)])
        for i in (0,2,4,5): assert not {1,3} & set(draws[:,i].tolist())
    assert (torch.stack([close_partners(y, s, .5) for s in range(300)])[:,0]==2).all()

# --- a partner's missing values

def partner_weight(plan, size):
    "(n,1,...) weight of the partner at each pixel, in loops"
    w = torch.zeros(plan.n, 1, *size, dtype=torch.double)
    for i in range(plan.n):
        w[i] = 1-float(plan.weight[i])
        if plan.box is not None: w[(i, slice(None), *(slice(a,b) for a,b in plan.box[i]))] = 1
        if plan.mask is not None: w[i] = (m:=mask_of(plan))[min(i, len(m)-1)].double()
    return w

MISSING = dict(MixUp=lambda r,s,**k: draw_mixup(r, 6, **k), CutMix=lambda r,s,**k: draw_cutmix(r, 6, s, **k), CutMixUp=lambda r,s,**k: draw_cutmixup(r, 6, s, **k),
               ResizeMix=lambda r,s,**k: draw_resizemix(r, 6, s, **k), FMix=lambda r,s,**k: draw_fmix(r, 6, s, **k), soft=lambda r,s,**k: draw_fmix(r, 6, s, max_soft=.3, **k),
               RecursiveMix=lambda r,s,**k: draw_recursivemix(r, 6, 6, s, **k))

@pytest.mark.parametrize('bad', [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('method', MISSING)
def test_missing_values_stay_where_they_are(method, dtype, bad):
    "Where the partner's weight is 0 a sample is its own, bit by bit, whatever the partner holds; where it is 1, the partner is all there is"
    for mode in MODES:
        for seed,prob,size in ((0,1.,(8,10)), (1,.5,(8,10)), (2,1.,(9,))):
            plan = MISSING[method](make_rng(seed), size, mode=mode, prob=prob)
            x = torch.rand(6,2,*size).to(dtype)
            x[::2,:,::3] = bad
            if len(size)==2: x = x.to(memory_format=torch.channels_last)
            w = partner_weight(plan, size).expand(x.shape)
            for inplace in (False,True):
                for grad in (False,True) if not inplace else (False,):
                    got = blend(x.clone().requires_grad_(grad), plan, inplace=inplace).detach()
                    assert torch.equal(got[w==0].nan_to_num(7., 8., 9.), x[w==0].nan_to_num(7., 8., 9.)), (mode,seed)
                    if not plan.resize:
                        xp = plan.partners_of(x)
                        assert torch.equal(got[w==1].nan_to_num(7., 8., 9.), xp[w==1].nan_to_num(7., 8., 9.))
                        assert torch.equal(got.isfinite()[(w>0)&(w<1)], (x.isfinite()&xp.isfinite())[(w>0)&(w<1)])

@pytest.mark.parametrize('mode', MODES)
def test_missing_targets_stay_with_their_samples(mode):
    "Numbers, columns, soft rows of an earlier batch, maps: a sample that is not mixed keeps its target"
    for seed in range(6):
        plan = draw_mixup(make_rng(seed), 6, mode=mode, prob=.5)
        still = torch.tensor(plan.lam)==1
        for shape in ((6,), (6,1), (6,4)):
            y = torch.rand(shape); y[::2] = torch.nan
            assert torch.equal(mix_target(y, plan).mixed[still].isnan(), y[still].isnan())
        rows = torch.rand(6,4); rows[::2] = torch.nan
        assert torch.isfinite(mix_target(torch.randint(0,4,(6,)), plan, 4, source=rows).mixed[still]).all()
        cut = draw_cutmixup(make_rng(seed), 6, (8,8), mode=mode)
        y = torch.rand(6,8,8); y[::2] = torch.nan
        keep = (partner_weight(cut, (8,8))==0)[:,0]
        assert torch.equal(mix_target(y, cut).mixed[keep].isnan(), y[keep].isnan())

# --- what has no meaning says so, before anything is trained

@pytest.mark.parametrize('method,kind,says', [('CutMix','rows of numbers, a label','It cuts over the dimensions.*use MixUp'), ('MixUp','text, a label','ManifoldMixUp'),
                                              ('MixUp, close partners','pictures, a label',"use partner='random'")])
def test_says_why_not(method, kind, says):
    import re
    assert re.search(says, attempt(method, kind)[2])
