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
    rolls = [draw_mixup(rng, 5).partner for _ in range(8000)]
    assert stats.chisquare(np.bincount(rolls, minlength=5)[1:]).pvalue > .001

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
