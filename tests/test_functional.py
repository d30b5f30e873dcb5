"The functions and `Mixup` for a plain PyTorch loop: results, compatibility with timm, seeds, refusals, and loops that train."
import subprocess, sys
import numpy as np, pytest, torch, torch.nn.functional as F
import timm.data.mixup as timm_mixup
from scipy import stats
from sklearn.datasets import load_digits
from torch import nn
from fastmix.draw import make_rng
from fastmix.plan import Plan
from fastmix.functional import *
from house import python

def test_no_fastai():
    p = python("import sys, fastmix.functional as f; f.Mixup(num_classes=3); print([m for m in sys.modules if m.split('.')[0]=='fastai'])")
    assert p.stdout.strip()=='[]', p.stdout+p.stderr

# --- the functions

x,y = torch.rand(6,3,8,12),torch.arange(6)
perm = torch.tensor([3,0,1,5,2,4])

def test_mixup_batch():
    before = x.clone()
    for mixing in (0., .2, .5, 1.):
        mixed,y_perm,m = mixup_batch(x, y, mixing, indices=perm)
        torch.testing.assert_close(mixed, (1-mixing)*x + mixing*x[perm])
        assert m==mixing and torch.equal(y_perm, y[perm]) and torch.equal(x, before)

def test_mixing_follows_the_fold_of_beta():
    "`min(lam, 1-lam)` with lam from Beta(.2,.2), as Composer draws it; one weight for the whole batch"
    m = np.array([mixup_batch(x, y)[2] for _ in range(4000)])
    assert m.max()<=.5 and stats.kstest(m[m>1e-4], lambda v: (stats.beta.cdf(v, .2, .2)-stats.beta.cdf(1e-4, .2, .2))/(.5-stats.beta.cdf(1e-4, .2, .2))).pvalue>.001
    assert mixup_batch(x, y, alpha=0.)[2]==0

def one_pixel_at_a_time(x, xp, bbox):
    "What Composer's order of `bbox` says: start over dimension 2, start over dimension 3, stop over 2, stop over 3"
    out = x.clone()
    for i in range(bbox[0], bbox[2]):
        for j in range(bbox[1], bbox[3]): out[:,:,i,j] = xp[:,:,i,j]
    return out

@pytest.mark.parametrize('shape', [(6,3,8,12), (6,2,8,12,4)])
def test_cutmix_batch_pixels(shape):
    "A volume is cut through its last dimension"
    x,box = torch.rand(shape),(2,1,7,12)
    mixed,y_perm,area,bbox = cutmix_batch(x, y, bbox=box, indices=perm)
    assert torch.equal(mixed, one_pixel_at_a_time(x, x[perm], box)) and torch.equal(y_perm, y[perm]) and bbox==box
    assert area==pytest.approx(1-55/96)

def test_cutmix_batch_on_sequences():
    "A sequence is one column"
    x = torch.rand(6,3,12)
    mixed,_,area,bbox = cutmix_batch(x, y, bbox=(2,0,7,1), indices=perm)
    assert torch.equal(mixed, one_pixel_at_a_time(x[...,None], x[perm][...,None], bbox)[...,0]) and bbox==(2,0,7,1) and area==pytest.approx(1-5/12)

def test_cutmix_batch_draws():
    for kw in (dict(), dict(length=.5), dict(uniform_sampling=True), dict(length=.4, uniform_sampling=True)):
        for _ in range(50):
            mixed,_,area,(t,l,b,r) = cutmix_batch(x, y, indices=perm, **kw)
            assert 0<=l<=r<=12 and 0<=t<=b<=8 and area==pytest.approx(1-(r-l)*(b-t)/96)
            want = x.clone(); want[...,t:b,l:r] = x[perm][...,t:b,l:r]
            assert torch.equal(mixed, want)
            if kw==dict(length=.5): assert r-l<=6 and b-t<=4
    assert cutmix_batch(x, y, alpha=0.)[2]==1 and cutmix_batch(x, y, length=0.)[2]==1

def test_uniform_sampling_is_uniform():
    "Each pixel has the same chance to be cut, and it is the area that was drawn: a half on average for alpha 1. Without, the middle has more and the mean is .3"
    def chance(**kw):
        c = np.zeros((8,12))
        for _ in range(3000):
            _,_,_,(t,l,b,r) = cutmix_batch(x[:2,:1], y[:2], **kw)
            c[t:b,l:r] += 1
        return c/3000
    p,q = chance(uniform_sampling=True),chance()
    assert abs(p-.5).max() < .05
    assert q[3:5,5:7].mean() > q[0,0]+.1 and q.mean()<.36
    p = chance(uniform_sampling=True, length=.5)
    assert p.max()-p.min() < .05 and abs(p.mean()-1/9) < .01              # (L/(1+L))**2

def test_resizemix_batch():
    mixed,y_perm,area,bbox = resizemix_batch(x, y, bbox=(1,3,7,9), indices=perm)
    want = x.clone(); want[...,1:7,3:9] = F.interpolate(x[perm], (6,6), mode='bilinear')
    torch.testing.assert_close(mixed, want)
    assert area==1-36/96 and bbox==(1,3,7,9) and torch.equal(y_perm, y[perm])
    area = np.mean([1-resizemix_batch(torch.rand(2,1,64,64), y[:2])[2] for _ in range(3000)])
    assert abs(area-.176)<.015

@pytest.mark.parametrize('max_soft', [0., .2])
def test_fmix_batch(max_soft):
    for _ in range(20):
        mixed,y_perm,area,mask = fmix_batch(x, y, max_soft=max_soft, indices=perm)
        m = mask.float()
        assert mask.shape==(8,12) and m.mean().item()==pytest.approx(area, abs=1e-6)
        torch.testing.assert_close(mixed, m*x + (1-m)*x[perm])
        again,_,a,_ = fmix_batch(x, y, mask=mask, indices=perm)
        torch.testing.assert_close(again, mixed)
        assert a==pytest.approx(area, abs=1e-6)

@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('f', [mixup_batch, cutmix_batch, resizemix_batch, fmix_batch])
def test_dtype_format_and_batch_sizes(f, dtype):
    for n in (1,2,5):
        t = torch.rand(n,3,9,7).to(dtype).to(memory_format=torch.channels_last)
        before = t.clone()
        out = f(t, torch.arange(n))[0]
        assert out.dtype==dtype and out.is_contiguous(memory_format=torch.channels_last) and torch.equal(t, before)
        if n==1 and f is not resizemix_batch: torch.testing.assert_close(out, t)              # its own partner; shrunk it is seen all the same

def test_one_number_of_torchs_stream_a_call():
    for f in (mixup_batch, cutmix_batch, resizemix_batch, fmix_batch, Mixup(cutmix_alpha=1., num_classes=6)):
        torch.manual_seed(5); np.random.seed(1)
        a,after = f(x, y)[0],torch.rand(3)
        torch.manual_seed(5); np.random.seed(2)
        b = f(x, y)[0]
        assert torch.equal(a, b)
        torch.manual_seed(5); torch.empty((), dtype=torch.int64).random_()
        assert torch.equal(after, torch.rand(3))
        assert np.random.randint(10**9)==np.random.RandomState(2).randint(10**9)              # numpy's stream is not touched

def test_mix_targets():
    t = mix_targets(y, y[perm], .3, num_classes=6, label_smoothing=.1)
    want = .9*(.7*F.one_hot(y, 6) + .3*F.one_hot(y[perm], 6)) + .1/6
    torch.testing.assert_close(t, want)
    torch.testing.assert_close(F.cross_entropy(x[:,0,0,:6], t), .7*F.cross_entropy(x[:,0,0,:6], y, label_smoothing=.1) + .3*F.cross_entropy(x[:,0,0,:6], y[perm], label_smoothing=.1))
    soft = torch.rand(6,4)
    torch.testing.assert_close(mix_targets(soft, soft[perm], .3, label_smoothing=.1), .7*soft + .3*soft[perm])   # dense targets are not smoothed
    multi = torch.randint(0,2,(6,4))
    torch.testing.assert_close(mix_targets(multi, multi[perm], torch.linspace(0,1,6)), torch.lerp(multi.float(), multi[perm].float(), torch.linspace(0,1,6)[:,None]))

@pytest.mark.parametrize('call,error,says', [
    (lambda: mixup_batch(x, y, mixing=1.5), ValueError, 'mixing=1.5'), (lambda: mixup_batch(x, y, alpha=-1), ValueError, 'alpha=-1'),
    (lambda: mixup_batch(x, y[:3]), ValueError, 'target has 3 samples, input has 6'), (lambda: mixup_batch(x, [1]*6), TypeError, 'target is a list'),
    (lambda: mixup_batch((x*255).byte(), y), TypeError, 'uint8'), (lambda: mixup_batch([1.], y), TypeError, 'x is a list'),
    (lambda: mixup_batch(x, y, indices=[0,1]), ValueError, 'indices has shape'), (lambda: cutmix_batch(x, y, length=.5, bbox=(0,0,1,1)), ValueError, 'give one of them'),
    (lambda: cutmix_batch(x, y, length=2), ValueError, 'length=2'), (lambda: cutmix_batch(x, y, bbox=(0,0,12,8)), ValueError, 'within 8 x 12 pixels'),
    (lambda: cutmix_batch(x, y, bbox=(1,2)), ValueError, r'bbox=\(1, 2\)'), (lambda: cutmix_batch(torch.rand(6,3), y), ValueError, 'use mixup_batch'),
    (lambda: resizemix_batch(x, y, scope=(.5,.1)), ValueError, 'smallest side comes first'), (lambda: fmix_batch(x, y, mask=torch.ones(8,8)), ValueError, 'mask has shape'),
    (lambda: mix_targets(y, y, .2), ValueError, 'num_classes=None'), (lambda: mix_targets(y, y, .2, 6, 1.), ValueError, 'label_smoothing=1.0'),
    (lambda: mix_targets(y, y, .2, -1), ValueError, 'num_classes=-1'), (lambda: mix_targets(y, y, torch.rand(3), 6), ValueError, r'mixing has shape \(3,\)'),
    (lambda: mixup_batch(x, y, indices=[0,1,2,3,4,6]), ValueError, 'from 0 to 6.*from 0 to 5'), (lambda: mixup_batch(x, y, indices=[0,1,2,3,4,-1]), ValueError, 'from -1 to 4'),
    (lambda: mixup_batch(x, y, indices=torch.ones(6, dtype=torch.bool)), ValueError, 'dtype torch.bool'), (lambda: cutmix_batch(x, y, bbox=(0,0,1.5,2)), ValueError, 'whole numbers of pixels'),
    (lambda: fmix_batch(x, y, mask=np.ones((8,12))), TypeError, 'mask is a ndarray'), (lambda: fmix_batch(x, y, mask=torch.full((8,12), 2.)), ValueError, 'from 2.0 to 2.0'),
    (lambda: Mixup(num_classes=6)(x, [1]*6), TypeError, 'target is a list'), (lambda: Mixup(num_classes=6)(x, y[:3]), ValueError, 'target has 3 samples, x has 6')])
def test_refusals(call, error, says):
    with pytest.raises(error, match=says): call()

@pytest.mark.parametrize('f', [mixup_batch, cutmix_batch, resizemix_batch, fmix_batch, Mixup(num_classes=6), Mixup(1., 1., mode='elem'), Mixup(1., 1., mode='pair')])
def test_empty_batches(f): assert f(x[:0], y[:0])[0].shape==(0,3,8,12)

def test_a_column_of_labels():
    "Class numbers are class numbers, in a row or in a column, as for timm; for a regression they are not"
    assert torch.equal(mix_targets(y[:,None], y[perm,None], .3, 6, .1), mix_targets(y, y[perm], .3, 6, .1))
    torch.testing.assert_close(mix_targets(y[:,None], y[perm,None], .3), torch.lerp(y.float(), y[perm].float(), .3)[:,None])
    for mode in ('batch','pair','elem'):
        torch.manual_seed(0); row = Mixup(num_classes=6, mode=mode)(x, y)[1]
        torch.manual_seed(0); assert torch.equal(row, Mixup(num_classes=6, mode=mode)(x, y[:,None])[1])

# --- every kind of target

mixing_of = [lambda t,**kw: Mixup(mixup_alpha=.2, prob=0., label_smoothing=0., **kw)(x, t)[1], lambda t,**kw: mix_targets(t, t[perm], 0., **kw)]

@pytest.mark.parametrize('mix', mixing_of, ids=['Mixup','mix_targets'])
def test_one_class_keeps_0_and_1(mix):
    "Yes or no: a column for a model with one output, which stays what it is and is smoothed towards a half"
    yes = torch.tensor([0,1,1,0,1,0])
    for t in (yes, yes[:,None], yes.byte()): assert torch.equal(mix(t, num_classes=1), yes.float()[:,None])
    torch.testing.assert_close(mix_targets(yes, yes, 0., 1, .2), (.8*yes+.1)[:,None])
    with pytest.raises(ValueError, match='labels from 0 to 2'): mix(yes+yes, num_classes=1)
    mask = torch.randint(0,2,(6,8,12))
    assert torch.equal(mix(mask, num_classes=1), mask[:,None].float())

@pytest.mark.parametrize('mix', mixing_of, ids=['Mixup','mix_targets'])
@pytest.mark.parametrize('labels', [[0,1,2,3,4,5], [-1,0,0,0,0,0], [-100,1,2,-100,0,1]])
def test_labels_outside_of_the_classes_raise(mix, labels):
    "As in plain training; a soft target cannot leave a sample out of the mean, so `ignore_index` is refused with the remedy"
    with pytest.raises(ValueError, match='0 to 4.*ignore_index.*mix two losses'): mix(torch.tensor(labels), num_classes=5)
    with pytest.raises(ValueError, match='0 to 4'): mix(torch.tensor(labels)[:,None,None].expand(6,8,12), num_classes=5)

def test_losses_leave_out_what_they_ignore():
    "The remedy that is named: two losses are the mean over the samples that are not ignored"
    t,pred = torch.tensor([1,-100,2,-100,0,1]),torch.randn(6,5)
    _,t_perm,m = mixup_batch(x, t, mixing=.3, indices=perm)
    own,other = F.cross_entropy(pred, t), F.cross_entropy(pred, t_perm)
    keep = t!=-100
    torch.testing.assert_close(own, F.cross_entropy(pred[keep], t[keep]))
    assert torch.isfinite((1-m)*own + m*other)

grey = torch.randint(0,5,(6,1,8,12)).float()                     # a picture that is its own mask

@pytest.mark.parametrize('mode', ['batch','pair','elem'])
@pytest.mark.parametrize('form', ['mask','column','float','map','twice as large'])
def test_masks_and_maps_go_where_their_pixels_go(mode, form):
    mask = dict(mask=grey[:,0].long(), column=grey.long(), float=grey[:,0], map=grey)
    mask['twice as large'] = F.interpolate(grey, scale_factor=2)
    for seed in range(8):
        torch.manual_seed(seed)
        cut,t = Mixup(mixup_alpha=0., cutmix_minmax=(.5,.5), mode=mode, num_classes=5, label_smoothing=0.)(grey, mask[form])
        assert t.dtype==mask[form].dtype and t.shape==mask[form].shape and not torch.equal(cut, grey)
        want = F.interpolate(cut, scale_factor=2) if form=='twice as large' else cut
        assert torch.equal(t.float().flatten(), want.flatten())

@pytest.mark.parametrize('mode', ['batch','pair','elem'])
def test_masks_become_rows_where_pixels_are_blended(mode):
    "The same weights as the picture: a picture of one-hot channels *is* its mask's rows, in every mode, blended, cut or both"
    mask = torch.randint(0,5,(6,8,12))
    rows = F.one_hot(mask, 5).movedim(-1, 1).float()
    for kw in (dict(mixup_alpha=.8), dict(mixup_alpha=.8, cutmix_alpha=1.)):
        for seed in range(8):
            torch.manual_seed(seed)
            mixed,t = Mixup(**kw, mode=mode, num_classes=5, label_smoothing=0.)(rows, mask)
            if t.is_floating_point(): torch.testing.assert_close(t, mixed)
            else: assert torch.equal(t, mixed.argmax(1))
            torch.manual_seed(seed)
            torch.testing.assert_close(Mixup(**kw, mode=mode, num_classes=5, label_smoothing=.1)(rows, mask)[1], .9*mixed+.02)

@pytest.mark.parametrize('method', ['cutmix','resizemix','fmix','mixup'])
def test_mix_targets_pastes_masks(method):
    "Told where the pictures were cut, `mix_targets` does with a mask what was done with the picture"
    x = grey.clone()
    if method=='mixup':
        x = F.one_hot(grey[:,0].long(), 5).movedim(-1, 1).float()
        mixed,t,m = mixup_batch(x, grey[:,0].long(), mixing=.3)
        return torch.testing.assert_close(mix_targets(grey[:,0].long(), t, m, num_classes=5), mixed)
    if method=='fmix':
        mixed,t,area,where = fmix_batch(x, grey[:,0].long())
        got = mix_targets(grey[:,0].long(), t, 1-area, num_classes=5, mask=where)
    elif method=='cutmix':
        mixed,t,area,where = cutmix_batch(x, grey[:,0].long(), bbox=(1,2,6,9))
        got = mix_targets(grey[:,0].long(), t, 1-area, num_classes=5, bbox=where)
    else:
        mixed,t,area,where = resizemix_batch(x, grey[:,0].long(), bbox=(0,6,4,12))       # half the size: nearest and linear pick pixels of their own
        got = mix_targets(grey[:,0], t.float(), 1-area, bbox=where, resize=True)
        return torch.testing.assert_close(got, mixed[:,0])
    assert torch.equal(got, mixed[:,0].long())

def test_multi_label_as_timm():
    for dense in (torch.rand(6,4), torch.randint(0,2,(6,4))):
        for kw in (dict(mixup_alpha=.8), dict(mixup_alpha=0., cutmix_alpha=1.)):
            torch.manual_seed(3); mix = Mixup(**kw, num_classes=4, multi_label=True, label_smoothing=.2)
            t = mix(x, dense)[1]
            torch.manual_seed(3); lam = float(mix.draw(6, (8,12)).lam[0])
            torch.testing.assert_close(t, timm_mixup.mixup_target(dense, 4, lam, .2, multi_label=True))
    for bad in (torch.rand(6,3), torch.zeros(6).long()):
        with pytest.raises(ValueError, match='multi_label=True.*num_classes=4'): Mixup(num_classes=4, multi_label=True)(x, bad)
    maps = torch.randint(0,2,(6,4,8,12))
    torch.manual_seed(0); cut,t = Mixup(mixup_alpha=0., cutmix_alpha=1., num_classes=4, multi_label=True, label_smoothing=.2)(maps.float(), maps)
    torch.testing.assert_close(t, .8*cut+.1)

def test_several_targets():
    verb,noun,names = torch.arange(6),torch.arange(6)+200,list('abcdef')
    mix = lambda c,t: (torch.manual_seed(0), Mixup(num_classes=c)(x, t)[1])[1]
    v,n = mix((97,300), (verb,noun))
    assert v.shape==(6,97) and n.shape==(6,300)
    assert torch.equal(v, mix(97, verb)) and torch.equal(n, mix(300, noun))
    d = mix({'verb':97,'noun':300,'file':None}, {'verb':verb,'noun':noun,'file':names})
    assert torch.equal(d['verb'], v) and torch.equal(d['noun'], n) and d['file'] is names
    assert torch.equal(mix(300, {'noun':noun,'file':names})['noun'], n) and torch.equal(mix((97,300), [verb,noun])[1], n)
    both = mix_targets((verb,noun), (verb[perm],noun[perm]), .3, num_classes=(97,300))
    assert torch.equal(both[1], mix_targets(noun, noun[perm], .3, 300))
    mixed,(y_perm,file),_ = mixup_batch(x, (verb,names), indices=perm)
    assert torch.equal(y_perm, verb[perm]) and file is names
    for c,t in (((97,300), verb), ((97,300,2), (verb,noun)), ({'verb':97}, {'verb':verb,'noun':noun})):
        with pytest.raises(ValueError, match='num_classes='): mix(c, t)
    with pytest.raises(ValueError, match='Columns are labels, 0 or 1. Give several targets as a tuple'): mix(9, torch.stack([verb,noun], 1))     # class numbers in columns are not averaged

def test_dict_batches():
    "Hugging Face's collate: the same keys, soft labels, and the caller's batch untouched"
    from collections import UserDict
    before = x.clone()
    for kind in (dict, UserDict):
        batch = kind(pixel_values=x, labels=y, ids=torch.arange(6), files=list('abcdef'))
        torch.manual_seed(0); got = Mixup(num_classes=6)(batch)
        torch.manual_seed(0); want = Mixup(num_classes=6)(x, y)
        assert type(got) is kind and list(got)==list(batch) and torch.equal(got['pixel_values'], want[0]) and torch.equal(got['labels'], want[1])
        assert got['ids'] is batch['ids'] and got['files'] is batch['files'] and batch['labels'] is y and torch.equal(x, before)
    torch.manual_seed(0); seg = Mixup(mixup_alpha=0., cutmix_alpha=1., label_smoothing=0., num_classes=5)({'pixel_values':grey, 'labels':grey[:,0].long()})
    assert torch.equal(seg['labels'], seg['pixel_values'][:,0].long())
    for bad,says in (({'pixel_values':x}, "no tensor called 'labels'"), ({'input_ids':torch.ones(6,9).long(), 'labels':y}, 'ManifoldMixUp'), (x, 'x is a Tensor')):
        with pytest.raises(TypeError, match=says): Mixup(num_classes=6)(bad)

def test_several_inputs():
    plan = Plan(6, *[np.full(6, .7, np.float32)]*2, partner=1)
    (a,b),t = mix_batch((x, x[:,0,0]), y, plan, 6)
    torch.testing.assert_close(a[:,0,0], b)

class TensorPoint(torch.Tensor): pass
class TensorBBox(TensorPoint): pass

@pytest.mark.parametrize('target,says', [(torch.rand(6,5,2).as_subclass(TensorPoint), 'TensorPoint'), (torch.rand(6,5,4).as_subclass(TensorBBox), 'TensorBBox'),
                                         (torch.tensor([[[0,0,5,5],[0,0,0,0]]]*6), 'look like boxes'), (torch.tensor([[0,0,5,5]]*6), 'look like boxes')])
def test_points_and_boxes_are_refused(target, says):
    for f in (mixup_batch, cutmix_batch, resizemix_batch, fmix_batch, Mixup(num_classes=6)):
        with pytest.raises((TypeError,ValueError), match=f'{says}.*neither averaged nor cut'): f(x, target)
        with pytest.raises((TypeError,ValueError), match=says): f(x, (y,target))

def test_nothing_is_read_from_a_device():
    "A tensor on the device 'meta' has no values: whoever reads one on the host fails"
    def meta(t): return t.to('meta')
    x = meta(torch.rand(6,3,8,12))
    targets = [torch.arange(6), torch.arange(6)[:,None], torch.rand(6), torch.rand(6,5), torch.randint(0,2,(6,5)), torch.zeros(6,8,12).long(), torch.zeros(6,8,12),
               torch.zeros(6,1,4,6).long(), torch.zeros(6,5,16,24), torch.zeros(6,4).long(), torch.zeros(6,8,12).bool()]
    for t in map(meta, targets):
        for mode in ('batch','pair','elem'):
            for kw in (dict(), dict(mixup_alpha=0., cutmix_alpha=1.), dict(cutmix_alpha=1., label_smoothing=0.), dict(cutmix_alpha=1., prob=.5)):
                for _ in range(2): got = Mixup(**kw, mode=mode, num_classes=6)(x, t)
                assert got[0].is_meta and got[1].is_meta
        for f in (mixup_batch, cutmix_batch, resizemix_batch):
            _,t_perm,m,*_ = f(x, t, indices=meta(perm))
            assert mix_targets(t, t_perm, m, num_classes=6).is_meta
    assert mix_targets(meta(y), meta(y), meta(torch.rand(6)), num_classes=6).is_meta
    assert Mixup(num_classes=1)(x, meta(y))[1].is_meta and Mixup(num_classes=5, multi_label=True)(x, meta(torch.rand(6,5)))[1].is_meta

# --- Mixup

@pytest.mark.parametrize('kw,says', [
    (dict(mixup_alpha=-1.), 'mixup_alpha=-1.0'), (dict(cutmix_alpha='1'), "cutmix_alpha='1'"), (dict(mixup_alpha=0.), 'nothing to do'), (dict(mode='half'), "mode='half'"),
    (dict(prob=1.1), 'prob=1.1'), (dict(switch_prob=-.1), 'switch_prob=-0.1'), (dict(cutmix_minmax=(.2,)), 'cutmix_minmax'), (dict(cutmix_minmax=(.6,.3)), 'smallest'),
    (dict(label_smoothing=1.), 'label_smoothing=1.0'), (dict(num_classes=0), 'num_classes=0'), (dict(num_classes=10.), 'num_classes=10.0'), (dict(num_classes=True), 'num_classes=True'), (dict(num_classes=None), 'num_classes=None'), (dict(num_classes=(3,0)), 'num_classes=0'), (dict(multi_label=2), 'multi_label=2'), (dict(inplace='no'), "inplace='no'"), (dict(correct_lam='yes'), "correct_lam='yes'")])
def test_mixup_refuses_when_made(kw, says):
    with pytest.raises(ValueError, match=says): Mixup(**kw)

def recorded(mix, n, size, mode):
    "What timm's object draws from numpy, as a plan of ours"
    k,boxes,params = {'elem':n, 'pair':n//2, 'batch':1}[mode],[],[]
    find,name = timm_mixup.cutmix_bbox_and_lam,'_params_per_batch' if mode=='batch' else '_params_per_elem'
    draw = getattr(mix, name)
    def params_of(*args):
        lam,cut = draw(*args)
        params.append((np.array(lam, dtype=np.float32).reshape(-1).copy(), np.array(cut).reshape(-1)))
        return lam,cut
    def box_of(*args, **kwargs):
        boxes.append(find(*args, **kwargs))
        return boxes[-1]
    setattr(mix, name, params_of)
    def plan():
        lam,cut = params[-1]
        weight,box,left = np.where(cut, 1., lam).astype(np.float32),np.zeros((k,2,2), int),iter(boxes)
        for i in range(k):
            if cut[i] and lam[i]!=1: ((a,b,c,d),lam[i]),box[i] = (o:=next(left)),[[o[0][0],o[0][1]],[o[0][2],o[0][3]]]
        def share(v): return v if mode=='elem' else np.concatenate([v,v[::-1]]) if mode=='pair' else np.repeat(v, n, 0)
        return Plan(n, share(weight), share(lam), 'mirror', share(box) if cut.any() else None, size=size, per_batch=mode=='batch')
    return box_of,plan

@pytest.mark.parametrize('mode', ['batch','pair','elem'])
@pytest.mark.parametrize('kw', [dict(mixup_alpha=.8), dict(mixup_alpha=0., cutmix_alpha=1.), dict(mixup_alpha=.8, cutmix_alpha=1.), dict(mixup_alpha=.8, cutmix_minmax=(.2,.8)),
                                dict(mixup_alpha=.2, cutmix_alpha=1., prob=.6, switch_prob=.3), dict(mixup_alpha=.8, cutmix_alpha=1., correct_lam=False)], ids=str)
def test_the_same_as_timm(monkeypatch, mode, kw):
    "With timm's own draws: the same pictures and the same targets, for every mode"
    mixed = 0
    for seed in range(12):
        np.random.seed(seed)
        x,y = torch.rand(8,3,10,14),torch.randint(0,10,(8,))
        theirs,ours = timm_mixup.Mixup(**kw, mode=mode, num_classes=10),Mixup(**kw, mode=mode, num_classes=10)
        box_of,plan = recorded(theirs, 8, (10,14), mode)
        monkeypatch.setattr(timm_mixup, 'cutmix_bbox_and_lam', box_of)
        want = theirs(x.clone(), y)
        monkeypatch.undo()
        ours.draw = lambda n,size: plan()
        got = ours(x, y)
        torch.testing.assert_close(got[0], want[0], rtol=0, atol=2e-6)
        torch.testing.assert_close(got[1], want[1], rtol=0, atol=2e-6)
        mixed += not torch.equal(got[0], x)
    assert mixed>4

@pytest.mark.parametrize('mode', ['batch','pair','elem'])
def test_draws_like_timm(mode):
    "The weights of both follow one distribution, MixUp's not folded, and so does the share of samples that are mixed or cut"
    kw = dict(mixup_alpha=.4, cutmix_alpha=1., prob=.8, switch_prob=.3, mode=mode, num_classes=4)
    theirs,ours = timm_mixup.Mixup(**kw),Mixup(**kw)
    reps = 3000 if mode=='batch' else 400
    a = np.concatenate([np.ravel(theirs._params_per_batch()[0] if mode=='batch' else theirs._params_per_elem(4)[0]) for _ in range(reps)])
    plans = [ours.draw(4 if mode=='elem' else 8, (64,64)) for _ in range(reps)]
    k = {'elem':4, 'pair':4, 'batch':1}[mode]
    cut = np.concatenate([(p.box[:k,:,1]>p.box[:k,:,0]).all(1) if p.box is not None else np.zeros(k, bool) for p in plans])
    b = np.concatenate([p.weight[:k] for p in plans])
    mixup = b[~cut & (b<1)]
    assert stats.kstest(mixup.astype(float), stats.beta(.4,.4).cdf).pvalue>.001 and mixup.min()<.1
    assert abs((a==1).mean() - ((b==1) & ~cut).mean()) < .05 and abs(cut.mean()-.8*.3) < .04

@pytest.mark.parametrize('n', [1,2,5,8])
@pytest.mark.parametrize('mode', ['batch','pair','elem'])
def test_mixup_odd_batches_and_inplace(n, mode):
    for seed in range(10):
        torch.manual_seed(seed)
        x,y = torch.rand(n,3,8,8),torch.randint(0,5,(n,))
        before,mix = x.clone(),Mixup(cutmix_alpha=1., mode=mode, num_classes=5)
        got,t = mix(x, y)
        assert torch.equal(x, before) and t.shape==(n,5) and t.dtype==torch.float32
        torch.testing.assert_close(t.sum(1), torch.ones(n))
        if n%2: torch.testing.assert_close(got[n//2], x[n//2]); torch.testing.assert_close(t[n//2], .9*F.one_hot(y[n//2], 5)+.02)
        torch.manual_seed(seed); torch.rand(n,3,8,8); torch.randint(0,5,(n,))
        mix.inplace = True
        assert mix(x, y)[0] is x and torch.equal(x, got)

def test_mixup_off_and_dense_targets():
    x = torch.rand(6,3,8,8)
    mix = Mixup(num_classes=4)
    mix.mixup_enabled = False
    out,t = mix(x, torch.tensor([0,1,2,3,0,1]))
    assert torch.equal(out, x)
    torch.testing.assert_close(t, timm_mixup.mixup_target(torch.tensor([0,1,2,3,0,1]), 4, 1., .1))
    for dense in (torch.rand(6,4), torch.randint(0,2,(6,4))):
        torch.manual_seed(0)
        _,t = Mixup(num_classes=4)(x, dense)
        torch.manual_seed(0)
        plan = Mixup(num_classes=4).draw(6, (8,8))
        torch.testing.assert_close(t, torch.lerp(dense.float().flip(0), dense.float(), torch.tensor(plan.lam)[:,None]))
    for shape in ((6,3,20), (6,2,5,6,7)): assert Mixup(mixup_alpha=0., cutmix_alpha=1., num_classes=4)(torch.rand(shape), torch.zeros(6).long())[0].shape==shape
    with pytest.raises(ValueError, match='cutmix_alpha=1: CutMix needs'): Mixup(cutmix_alpha=1., switch_prob=1., num_classes=4)(torch.rand(6,3), torch.zeros(6).long())
    with pytest.raises(TypeError, match='uint8'): mix((x*255).byte(), torch.zeros(6).long())

# --- loops

def loop(loss_of, epochs=5, bs=64):
    "A plain loop on the digits with one-cycle, autocast, clipping and a log of the learning rate; accuracy without mixing"
    torch.manual_seed(0)
    d = load_digits()
    x,y = torch.tensor(d.images, dtype=torch.float)[:,None]/16,torch.tensor(d.target)
    test = torch.arange(len(x))%5==0
    xt,yt = x[~test],y[~test]
    model = nn.Sequential(nn.Conv2d(1,16,3,padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16,32,3,2,1), nn.ReLU(), nn.Flatten(), nn.Linear(512,10))
    opt = torch.optim.AdamW(model.parameters())
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=epochs*-(-len(xt)//bs))
    lrs,losses = [],[]
    for _ in range(epochs):
        model.train()
        for i in torch.randperm(len(xt)).split(bs):                        # the last batch is shorter, and odd
            with torch.autocast('cpu', torch.bfloat16): loss = loss_of(model, xt[i], yt[i])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.)
            opt.step(); opt.zero_grad()
            lrs.append(sched.get_last_lr()[0]); losses.append(loss.item()); sched.step()
    model.eval()
    with torch.no_grad(): a,b = model(x[test]),model(x[test])
    assert torch.equal(a, b)                                              # nothing is mixed in evaluation
    return (a.argmax(1)==y[test]).float().mean().item(), lrs, losses

def losses_interpolated(model, x, y):
    x,y_perm,mixing = mixup_batch(x, y, alpha=.2)
    pred = model(x)
    return (1-mixing)*F.cross_entropy(pred, y) + mixing*F.cross_entropy(pred, y_perm)

def targets_interpolated(model, x, y):
    x,y_perm,area,_ = cutmix_batch(x, y)
    return F.cross_entropy(model(x), mix_targets(y, y_perm, 1-area, num_classes=10, label_smoothing=.1))

mixup = Mixup(mixup_alpha=.2, cutmix_alpha=1., label_smoothing=.1, num_classes=10)
def mixed_by_object(model, x, y):
    x,t = mixup(x, y)
    assert t.max() <= .9+.01+1e-6 and (t.min()-.01).abs()<1e-6            # smoothed, and once
    return F.cross_entropy(model(x), t)

@pytest.mark.every(3)
@pytest.mark.parametrize('loss_of', [losses_interpolated, targets_interpolated, mixed_by_object])
def test_loops_train(loss_of):
    acc,lrs,losses = loop(loss_of)
    assert acc>.93
    assert lrs[0]<1e-3 and max(lrs)==pytest.approx(1e-2, rel=1e-2) and lrs[-1]<1e-5
    assert loop(loss_of, epochs=1)[2]==loop(loss_of, epochs=1)[2]         # a seed repeats a run

def test_generators_of_neighbouring_seeds_and_ranks_have_nothing_in_common():
    "Seeds 0, 1, 2, … and the ranks of one seed: uniform, and uncorrelated with each other, in the first and in later numbers"
    def first(rank): return np.array([make_rng(seed, (rank,)).random(3) for seed in range(4000)])
    u = np.concatenate([first(0),first(1)], 1)
    for o in u.T: assert stats.kstest(o, 'uniform').pvalue > .001
    c = np.corrcoef(np.concatenate([u[1:],u[:-1]], 1).T) - np.eye(12)
    assert abs(c).max() < .06, c                                    # 4000 numbers: one standard error is .016
