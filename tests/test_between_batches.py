"Runs that are saved between two batches: killed at every one, asked to leave by a signal or a time limit, and the same in the end"
import test_resume as runs
from test_resume import *
from fastai.callback.rnn import rnn_cbs
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_lm_config
from fastai.text.models.core import get_language_model
from fastmix.checkpoint.winding import why_not_wound
from fastmix.ema import EMA
from fastmix.recipe import *

for _k in [k for k in globals() if k.startswith('test_') or k.startswith('testchecksum')]: del globals()[_k] # those of test_resume run there
one_thread = runs.one_thread

each = dict(every_min=0)
def one_cycle(*make, n_acc=None):
    def fit(learn, n, cbs): learn.fit_one_cycle(n, 1e-2, cbs=[*(f() for f in make), CSVLogger(), *cbs])
    return fit
more = dict(recursive=one_cycle(mix.RecursiveMix), ema=one_cycle(mix.CutMixUp, EMA), manifold=one_cycle(mix.MixUp, mix.CutMix),
            long=lambda learn,n,cbs: learn.fit_long(n, 1e-2, ema=True, clip=1., advice=False, cbs=[mix.RecursiveMix(), GradientAccumulation(130), CSVLogger(), *cbs]))

@pytest.fixture(autouse=True)
def more_recipes(monkeypatch):
    for k,f in more.items(): monkeypatch.setitem(recipes, k, f)

def reference(tmp_path, recipe, n, make=learner, **kw):
    "What an undisturbed run leaves behind; with workers one that is saved between batches, which seeds them by batch"
    key = 'between',recipe,n,make,str(sorted(kw.items(), key=str))
    if key not in runs._whole:
        learn = make(tmp_path/'reference', **kw)
        fit(recipe, learn, n, *([resume(every_min=1000)] if kw.get('workers') else []))
        runs._whole[key] = end(learn)
    return runs._whole[key]

def stops_and_goes(tmp_path, recipe, *stops, n=3, make=learner, **kw):
    "Stop at `(epoch, batch)`, each time calling again in a new session; compare with the run that nobody stops"
    want,seed = reference(tmp_path, recipe, n, make, **kw),1
    for e,b in stops:
        with pytest.raises(KeyboardInterrupt): fit(recipe, make(tmp_path/'run', seed=seed, **kw), n, resume(**each), Stop('after_batch', e, batch=b))
        seed = 99
    learn = make(tmp_path/'run', seed=seed, **kw)
    out,have = fit(recipe, learn, n, resume(**each)),end(learn)
    assert {k for k in want if want[k]!=have[k]}==set() and ('batches' in out or not stops[-1][1])
    return learn

some = (0,2),(1,1),(1,4),(2,0)

# --- the same in the end

@pytest.mark.parametrize('recipe', ['accumulate','recursive','ema'])
def test_stopped_between_batches(tmp_path, recipe): stops_and_goes(tmp_path, recipe, *some)

@pytest.mark.parametrize('kw', [dict(workers=2), dict(plain=True), dict(plain=True, workers=1)], ids=str)
def test_kinds_of_loaders(tmp_path, kw): stops_and_goes(tmp_path, 'one_cycle', (0,1), (1,3), n=2, **kw)

@pytest.mark.parametrize('make', [train_metrics,scaled,sometimes])
@saying('ignore:.*not available')
@saying('ignore:.*CUDA is not')
def test_kinds_of_learners(tmp_path, make): stops_and_goes(tmp_path, 'accumulate', (0,2), (1,3), n=2, make=make)

def recurrent(path, seed=1, **kw):
    "A language model that carries its state from one text to the next"
    learn = language_model(path, seed, **kw)
    conf = {**awd_lstm_lm_config, 'emb_sz':8, 'n_hid':8, 'n_layers':2}
    learn.model = get_language_model(AWD_LSTM, 30, config=conf)
    return learn.add_cbs(rnn_cbs(alpha=2, beta=1))

@pytest.mark.parametrize('make', [recurrent,text_classifier])
def test_texts_between_batches(tmp_path, make): stops_and_goes(tmp_path, 'flat_cos', (0,3), (1,2), n=2, make=make)

def test_one_learner_between_batches(tmp_path):
    "Interrupted, and the cell run again on the same learner, with a bar"
    want,learn = whole(tmp_path, 'accumulate', 3, learner, {}),learner(tmp_path/'run')
    for e,b in some:
        with pytest.raises(KeyboardInterrupt): fit('accumulate', learn, 3, resume(**each), Stop('after_batch', e, batch=b), bar=True)
    fit('accumulate', learn, 3, resume(**each), bar=True)
    assert end(learn)==want

# --- killed at every batch

def killed_at_every_batch(tmp_path, recipe, n, workers=0):
    "SIGKILL in each batch of the run; whoever comes next trains that batch and is killed in the one after it"
    want,seed = reference(tmp_path, recipe, n, workers=workers),1
    for e in range(n):
        for b in range(5):
            def run():
                stop = Stop('after_loss' if (e+b)%2 else 'after_batch', e, batch=b)
                stop.ex = die
                fit(recipe, learner(tmp_path/'run', seed=seed, workers=workers), n, resume(**each), stop)
            assert child(run)==-signal.SIGKILL, (e,b)
            assert saved(tmp_path/'run')[-1]==('epoch_0000.pth' if not e+b else f'epoch_{e:04d}_batch_{b:06d}.pth' if b else f'epoch_{e:04d}.pth')
            if e+b: seed = 99
    learn = learner(tmp_path/'run', seed=98, workers=workers)
    fit(recipe, learn, n, resume(**each))
    have = end(learn)
    assert {k for k in want if want[k]!=have[k]}==set()

@linux
@saying('error:.*will differ')
def test_killed_at_every_batch(tmp_path): killed_at_every_batch(tmp_path, 'long', 2)

@linux
@pytest.mark.full
@pytest.mark.parametrize('workers', [0,2])
@pytest.mark.parametrize('recipe', ['one_cycle','plateau','accumulate','recursive','ema','manifold','long'])
def test_killed_at_every_batch_of_each(tmp_path, recipe, workers): killed_at_every_batch(tmp_path, recipe, 5 if not workers else 2, workers)
