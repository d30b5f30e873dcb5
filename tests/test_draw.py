"What is drawn follows the distributions that are promised."
import numpy as np, pytest
from fastcore.test import test_eq as eq, test_close as close
from scipy import stats
from fastmix.draw import *

@pytest.fixture
def rng(): return make_rng(0)

def fold_cdf(alpha): return lambda l: np.where(l<.5, 0, 2*stats.beta.cdf(l, alpha, alpha)-1)

@pytest.mark.parametrize('alpha', [.1, .4, 1., 4.])
@pytest.mark.parametrize('mode', MODES)
def test_weights_follow_the_fold_of_beta(rng, alpha, mode):
    "One sample a unit, so that the draws are independent"
    n = {'elem':20_000, 'pair':40_000, 'batch':1}[mode]
    lam = np.concatenate([draw_mixup(rng, 8, alpha, mode).lam[:1] for _ in range(5000)]) if mode=='batch' else draw_mixup(rng, n, alpha, mode).lam[:20_000]
    assert lam.min()>=.5
    cdf,lam = fold_cdf(alpha),lam.astype(float)
    top = .999                      # above it float32 has too few numbers for a test of continuous ones: count them instead
    close((lam<top).mean(), cdf(top), .02)
    assert stats.kstest(lam[lam<top], lambda l: cdf(l)/cdf(top)).pvalue > .001

@pytest.mark.parametrize('alpha', [.1, .5, 1., 3.])
def test_unfolded_weights_follow_beta(rng, alpha):
    assert stats.kstest(draw_lam(rng, 20_000, alpha), stats.beta(alpha, alpha).cdf).pvalue > .001

@pytest.mark.parametrize('size', [(224,224), (32,32), (96,160)])
def test_mean_pasted_area(rng, size):
    "CutMix with alpha 1 pastes about a third of the picture: boxes are clipped at the border"
    area = 1-draw_cutmix(rng, 200_000, size, mode='elem').lam
    close(area.mean(), .317, .01)

@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('minmax', [None, (.2,.8), (.5,.5), (0.,1.)])
@pytest.mark.parametrize('size', [(17,), (16,16), (9,30), (5,6,7)])
def test_lam_is_the_untouched_area(rng, mode, minmax, size):
    for n in (1,2,5,8):
        p = draw_cutmix(rng, n, size, minmax=minmax, mode=mode)
        eq(p.lam, (1-(p.box[...,1]-p.box[...,0]).prod(-1)/np.prod(size)).astype(np.float32))
        assert (p.box>=0).all() and (p.box[...,1]<=np.array(size)).all() and (p.box[...,1]>=p.box[...,0]).all()

def test_minmax_sides(rng):
    p = draw_cutmix(rng, 5000, (100,50), minmax=(.2,.6), mode='elem')
    sides = (p.box[...,1]-p.box[...,0])/np.array([100,50])
    close(sides.min(0), np.array([.2,.2]), 1e-6); close(sides.max(0), np.array([.6,.6]), 1e-6); close(sides.mean(), .4, .01)

def test_correct_lam_off_keeps_the_draw(rng):
    "The drawn weights are uniform for alpha 1; what was really left untouched is more"
    lam = draw_cutmix(rng, 20_000, (64,64), correct_lam=False, mode='elem').lam
    assert stats.kstest(lam.astype(float), 'uniform').pvalue > .001

@pytest.mark.parametrize('draw', [lambda rng,n,m: draw_mixup(rng,n,mode=m), lambda rng,n,m: draw_cutmix(rng,n,(8,8),mode=m), lambda rng,n,m: draw_cutmixup(rng,n,(8,8),mode=m)])
@pytest.mark.parametrize('n', [1,2,3,8,9])
@pytest.mark.parametrize('mode', MODES)
def test_partners_and_sharing(rng, draw, n, mode):
    for _ in range(20):
        p = draw(rng, n, mode)
        eq(sorted(p.idx), range(n))                                               # everyone is somebody's partner, once
        if mode=='pair':
            eq(p.idx, n-1-np.arange(n)); eq(p.idx[p.idx], np.arange(n)); eq(p.lam, p.lam[p.idx])
            if n%2: eq(p.lam[n//2], 1)
        elif n>1: assert (p.idx!=np.arange(n)).all()
        if mode=='batch': assert (p.lam==p.lam[0]).all()
        if n==1: eq(p.mixes, False); eq(p.lam, [1])
    if mode=='elem' and n==8: assert len({tuple(draw(rng, n, mode).lam) for _ in range(5)})==5 and len(set(draw_mixup(rng, n).lam))==n

def test_rolls_are_uniform(rng):
    shifts = [draw_mixup(rng, 5).shift for _ in range(8000)]
    assert stats.chisquare(np.bincount(shifts, minlength=5)[1:]).pvalue > .001

@pytest.mark.parametrize('mode,k', [('elem',1000), ('pair',500), ('batch',1)])
def test_prob_and_switch_prob(rng, mode, k):
    "Both apply to each unit: sample, pair or batch"
    n,reps = 1000, 20 if k>1 else 8000
    plans = [draw_cutmixup(rng, n if k>1 else 2, (20,20), switch_prob=.3, minmax=(.5,.5), mix_alpha=1., mode=mode, prob=.6) for _ in range(reps)]
    cut = np.concatenate([box_area(p.box, (20,20))[:k]>0 if p.box is not None else np.zeros(min(k,p.n), bool) for p in plans])
    mixed = np.concatenate([p.lam[:k]<1 for p in plans])
    close(mixed.mean(), .6, .02); close(cut.mean(), .18, .02)

def test_limits_of_alpha(rng):
    eq(draw_mixup(rng, 8, 0.).mixes, False)
    eq(draw_cutmix(rng, 8, (16,16), 0., mode='elem').mixes, False)
    lam = draw_mixup(rng, 1000, 1e-8).lam
    assert (lam>.999).all()                     # near no mixing, never the strongest
    lam = draw_mixup(rng, 1000, 1e4).lam
    assert (lam<.52).all()

@pytest.mark.parametrize('strength', [0., .25, 1.])
def test_strength_scales_what_is_given_away(strength):
    lam = draw_mixup(make_rng(3), 100, 1.).lam
    close(1-draw_mixup(make_rng(3), 100, 1., strength=strength).lam, strength*(1-lam), 1e-6)
    area = (1-draw_cutmix(make_rng(3), 20_000, (200,200), mode='elem', strength=strength).lam).mean()
    assert (area==0) if strength==0 else .6*strength*.317 < area < 1.4*strength*.5

# --- drawn ahead

ways = dict(mixup=(draw_mixup, {}), cutmix=(draw_cutmix, dict(size=(16,12))), cutmixup=(draw_cutmixup, dict(size=(16,12))),
            resizemix=(draw_resizemix, dict(size=(16,12))))

@pytest.mark.parametrize('n', [1,2,3,8,9])
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('way', ways)
def test_plans_drawn_ahead_are_what_the_mode_says(rng, way, mode, n):
    (draw,kw),ahead = ways[way],Ahead()
    plans = [ahead(rng, draw, n, mode, **kw) for _ in range(100)]
    assert ahead.batches>1
    for p in plans:
        eq(sorted(p.idx), range(n)); eq((p.n, p.same), (n, mode=='batch'))
        assert p.weight.dtype==p.lam.dtype==np.float32 and len(p.lam)==len(p.weight)==n
        if mode=='pair': assert p.shift is None; eq(p.lam, p.lam[::-1]); eq(p.weight, p.weight[::-1])
        if mode=='batch': eq(len(set(p.lam)), 1)
        if n==1: assert not p.mixes
        if p.box is None: eq(p.weight, p.lam); continue
        cut = p.weight==1
        area = np.concatenate([box_area(o[None], (16,12)) for o in p.box])
        assert np.array_equal(p.lam, np.where(cut, (1-area).astype(np.float32), p.weight)) and not area[~cut].any()
        eq(p.resize, way=='resizemix')
        if mode=='batch': assert cut.all()                       # one for all: either a box or a weight
    if n>1 and mode!='pair': eq({p.shift for p in plans}, set(range(1,n)))

def test_drawn_ahead_follows_the_same_distributions(rng):
    ahead = Ahead()
    plans = [ahead(rng, draw_cutmixup, 8, size=(64,64), mix_alpha=.4, prob=.8) for _ in range(5000)]
    lam,weight,area = (np.concatenate(o) for o in zip(*((p.lam, p.weight, box_area(p.box, (64,64))) for p in plans)))
    close((weight<1).mean(), .4, .01); close(((area==0)&(weight==1)).mean(), .2, .02)
    top,mixed = .999,weight[weight<1].astype(float)
    assert stats.kstest(mixed[mixed<top], lambda l: fold_cdf(.4)(l)/fold_cdf(.4)(top)).pvalue > .001
    direct = draw_cutmix(rng, 50_000, (64,64), mode='elem').box
    close(area[area>0].mean(), (lambda a: a[a>0].mean())(box_area(direct, (64,64))), .01)
    close(np.bincount([p.shift for p in plans])[1:]/5000, np.full(7, 1/7), .02)

@pytest.mark.parametrize('stop', [0,1,2,3,5,14,15,16,31,40])
def test_drawn_ahead_goes_on_where_it_was(stop):
    "Generator and state, saved after any number of batches, give the same plans from there on"
    def some(rng, ahead, k): return [ahead(rng, draw_cutmix, 5, 'elem', size=(9,9)) for _ in range(k)]
    rng,ahead = make_rng(1),Ahead()
    some(rng, ahead, stop)
    state,rest = (rng.bit_generator.state,ahead.__getstate__()),some(rng, ahead, 50)
    rng,ahead = make_rng(2),Ahead()
    some(rng, ahead, 7)
    rng.bit_generator.state = state[0]; ahead.__setstate__(state[1])
    for a,b in zip(rest, some(rng, ahead, 50)): eq(a.lam, b.lam); eq(a.box, b.box); eq(a.shift, b.shift)

def test_drawn_ahead_follows_every_change(rng):
    "A change of anything takes effect in the next batch"
    ahead = Ahead()
    for _ in range(20): assert ahead(rng, draw_mixup, 8, prob=1.).mixes
    for _ in range(20): assert not ahead(rng, draw_mixup, 8, prob=0.).mixes
    eq([ahead(rng, draw_mixup, n, prob=1.).n for n in (8,8,8,5,8)], [8,8,8,5,8])
    for i in range(50):
        ahead(rng, draw_mixup, 8, prob=.9-i/100); eq(ahead.batches, 1)              # another chance in each batch: one at a time
    for _ in range(5): ahead(rng, draw_mixup, 3000); eq(ahead.batches, 1)          # and so are large batches
    for _ in range(3): assert ahead(rng, draw_resizemix, 8, size=(9,9)).resize
    assert not ahead(rng, draw_cutmix, 8, size=(9,9)).resize                       # another function with the same arguments
    for _ in range(5): assert not ahead(rng, draw_mixup, 0).mixes                  # nobody there

def test_what_cannot_be_drawn_ahead_is_refused(rng):
    with pytest.raises(ValueError, match='has a map or partners'): Ahead()(rng, draw_fmix, 8, size=(8,8))
