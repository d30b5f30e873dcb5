"Runs that are saved between two batches: killed at every one, asked to leave by a signal or a time limit, and the same in the end"
import test_resume as runs
from test_resume import *
from fastai.callback.rnn import rnn_cbs
from fastai.data.load import SkipItemException
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

@pytest.mark.every(2)
@pytest.mark.parametrize('kw', [dict(workers=2), dict(plain=True), dict(plain=True, workers=1)], ids=str)
def test_kinds_of_loaders(tmp_path, kw): stops_and_goes(tmp_path, 'one_cycle', (0,1), (1,3), n=2, **kw)

@pytest.mark.parametrize('make', [train_metrics,scaled,sometimes])
@saying('ignore:.*not available')
@saying('ignore:.*CUDA is not')
def test_kinds_of_learners(tmp_path, make): stops_and_goes(tmp_path, 'accumulate', (0,2), (1,3), n=2, make=make)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='half precision with a scale needs a card')
def test_half_precision_on_a_card(tmp_path): stops_and_goes(tmp_path, 'accumulate', (0,2), (1,3), n=2, make=fp16)

class Unreadable(Digits):
    "Some of the later items are left out, after random numbers were drawn for them"
    def __getitem__(self, i):
        res = super().__getitem__(i)
        if i>200 and not i%9: raise SkipItemException
        return res

def leaving_out(path, seed=1, workers=0, **kw):
    set_seed(seed)
    dls = DataLoaders(DataLoader(Unreadable(0,320,True), bs=64, num_workers=workers), DataLoader(Digits(1000,1200,False), bs=64))
    return learner(path, seed, dls=dls, **kw)

@pytest.mark.parametrize('workers', [0,2])
def test_items_that_are_left_out(tmp_path, workers):
    "From then on the number of batches says no more where an epoch is: it is not saved in its middle, which is said, and begun again"
    want = reference(tmp_path, 'one_cycle', 2, leaving_out, workers=workers)
    with pytest.warns(UserWarning, match='has left out items'), pytest.raises(KeyboardInterrupt):
        fit('one_cycle', leaving_out(tmp_path/'run', workers=workers), 2, resume(**each), Stop('after_batch', 1, batch=4))
    last = saved(tmp_path/'run')[-1]
    assert last=='epoch_0001_batch_000003.pth' if not workers else last<='epoch_0001_batch_000003.pth'
    learn = leaving_out(tmp_path/'run', seed=99, workers=workers)
    with pytest.warns(UserWarning, match='has left out items'): fit('one_cycle', learn, 2, resume(**each))
    have = end(learn)
    assert {k for k in want if want[k]!=have[k]}==set()

def test_a_loader_that_is_made_meanwhile(tmp_path):
    "From the one that trains, for other data: it loads those"
    learn,few = learner(tmp_path),Digits(1000,1004,False)
    class Looks(Callback):
        def after_batch(self): self.learn.seen = self.dls.train.new(dataset=few, bs=4, shuffle=False).one_batch()[1]
    fit('one_cycle', learn, 1, resume(**each), Looks())
    assert learn.seen.tolist()==[int(few[i][1]) for i in range(4)]

def recurrent(path, seed=1, **kw):
    "A language model that carries its state from one text to the next"
    learn = language_model(path, seed, **kw)
    conf = {**awd_lstm_lm_config, 'emb_sz':8, 'n_hid':8, 'n_layers':2}
    learn.model = get_language_model(AWD_LSTM, 30, config=conf)
    return learn.add_cbs(rnn_cbs(alpha=2, beta=1))

@pytest.mark.full
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

def test_nothing_is_loaded_again(tmp_path, monkeypatch):
    "Pictures of batches that were used are not loaded"
    with pytest.raises(KeyboardInterrupt): fit('one_cycle', learner(tmp_path), 2, resume(**each), Stop('after_batch', 0, batch=3))
    learn,loaded,item = learner(tmp_path),[],Digits.__getitem__
    monkeypatch.setattr(Digits, '__getitem__', lambda self,i: loaded.append(i) or item(self, i))
    with pytest.raises(KeyboardInterrupt): fit('one_cycle', learn, 2, resume(**each), Stop('before_validate', 0))
    assert len(loaded)==2*64

@pytest.mark.every(2)
@pytest.mark.parametrize('what', ['start','metrics','recurrent','memory','hps'])
def test_each_part_of_an_epoch_is_needed(tmp_path, what, monkeypatch):
    "With another state of it in the checkpoint each part shows in the end"
    recipe = 'recursive' if what=='memory' else 'long' if what=='hps' else 'flat_cos'
    make = recurrent if what=='recurrent' else train_metrics if what=='metrics' else learner
    want = reference(tmp_path, recipe, 2, make)
    with pytest.raises(KeyboardInterrupt): fit(recipe, make(tmp_path/'run'), 2, resume(**each), Stop('after_batch', 1, batch=3))
    def forget(folder):
        s = newest_checkpoint(folder)
        own = s['own'][0]
        if what=='start': own['start'] = {**own['start'], 'generators':{}}
        if what=='metrics': own['in epoch']['metrics'][0]['data']['count'] = 1
        if what=='recurrent': own['in epoch']['recurrent'] = {}
        if what=='memory': del own['callbacks']['RecursiveMix']['memory']
        if what=='hps': own['callbacks']['MixRecorder']['start'] += 1
        return s
    monkeypatch.setattr(R, 'newest_checkpoint', forget)
    learn = make(tmp_path/'run', seed=99)
    fit(recipe, learn, 2, resume(**each))
    have = end(learn)
    assert {k for k in want if want[k]!=have[k]}

class Spoil(Callback):
    "A loss that is not finite in one batch, which is not stepped; stops in a later one"
    run_valid,order = False,-50
    def __init__(self, at, stop=None): store_attr()
    def before_batch(self):
        if self.learn.epoch==1 and self.learn.iter==self.at: self.learn.xb = (self.x+float('inf'),)
    def before_step(self):
        if self.learn.epoch==1 and self.learn.iter==self.at: raise CancelStepException
    def after_batch(self):
        if (self.learn.epoch,self.learn.iter)==(1,self.stop): raise KeyboardInterrupt

def test_a_loss_that_was_not_finite_before(tmp_path):
    "The run is interrupted after that batch, and continued after the next one: the warning counts all batches of the epoch"
    def said(stop):
        learn = learner(tmp_path, noise=False)
        learn.model = nn.Sequential(nn.Flatten(), nn.Linear(64,10)) # no statistics of batches, which would stay NaN
        with warnings.catch_warnings(record=True) as o,learn.no_bar(),learn.no_logging():
            warnings.simplefilter('always')
            try: learn.fit(3, 1e-3, cbs=[mix.MixUp(), Spoil(1, stop), Resume('run', ignore=Spoil, **each)])
            except KeyboardInterrupt: pass
        return [str(w.message) for w in o if 'not finite' in str(w.message)]
    assert said(3)==[] and saved(tmp_path)[-1]=='epoch_0001_batch_000003.pth'
    once, = said(None)
    assert 'the loss of 1 of 5 mixed batches in epoch 1 is not finite, first in batch 1 ' in once

# --- asked to leave

class SignalAt(Callback):
    "A signal in a batch, to this process or to its group"
    def __init__(self, epoch, batch, signum=signal.SIGTERM, train=True, group=False): store_attr()
    def after_batch(self):
        if (self.learn.epoch,self.learn.iter,self.learn.training)!=(self.epoch,self.batch,self.train): return
        os.killpg(0, self.signum) if self.group else os.kill(os.getpid(), self.signum)

def ignoring(**kw): return Resume('run', ignore=(Stop,SignalAt), **kw)

@pytest.mark.every(2)
@pytest.mark.parametrize('signum', [signal.SIGTERM,signal.SIGUSR1])
def test_signals(tmp_path, signum):
    "Saved after the batch, or as it was before validation; one line says how to go on; then nothing handles the signal any more"
    want = reference(tmp_path, 'recursive', 3)
    for train,file in ((True,'epoch_0001_batch_000003.pth'),(False,'epoch_0001_batch_000005.pth')):
        out,learn = io.StringIO(),learner(tmp_path/'run', seed=1 if train else 9)
        with pytest.raises(SystemExit) as e,redirect_stdout(out),learn.no_bar(),learn.no_logging():
            recipes['recursive'](learn, 3, [ignoring(every_min=1000), SignalAt(1, 2 if train else 0, signum, train)])
        assert e.value.code==128+signum and saved(tmp_path/'run')[-1]==file
        assert re.search(rf'run: {signum.name}: saved after .* of 3 epochs.*; the same call goes on from there\n$', out.getvalue())
        assert signal.getsignal(signum)==signal.SIG_DFL
    learn = learner(tmp_path/'run', seed=9)
    fit('recursive', learn, 3, ignoring(every_min=1000))
    assert end(learn)==want

class InValidation(Callback):
    "Has the run end in the first validation batch, or a later one; half way, everything looks different"
    def __init__(self, epoch, batch=0, how='pause'): self.at,self.how = (epoch,batch),how
    def before_validate(self):
        self.was = deepcopy(self.learn.model.state_dict())
        for p in self.learn.model.parameters(): p.data.mul_(1.01)
        random.random(),np.random.rand(),torch.rand(1)
    def after_batch(self):
        if self.learn.training or (self.learn.epoch,self.learn.iter)!=self.at: return
        if self.how=='pause': self.learn.resume.pause()
        else: self.learn.resume._limit.ends_at = 0.
    def after_validate(self): self.learn.model.load_state_dict(self.was)

@pytest.mark.every(2)
@pytest.mark.parametrize('recipe,make,kw', [('recursive',learner,{}), ('ema',learner,{}), ('long',learner,{}), ('early',learner,{}), ('one_cycle',learner,dict(workers=2)),
                                            ('accumulate',train_metrics,{})])
def test_asked_to_end_in_validation(tmp_path, recipe, make, kw):
    "At the next batch; what is saved is what the run was like before, and the same call validates first"
    def run(path, seed, at=(None,0), how='pause'):
        learn,saver = make(path, seed=seed, **kw),Resume('run', every_min=1000, ignore=InValidation)
        fit(recipe, learn, 3, InValidation(*at, how), saver)
        return learn,saver
    want = end(run(tmp_path/'whole', 1)[0])
    stops = [((0,0),'pause','epoch_0000_batch_000005.pth'), ((0,1),'pause','epoch_0000_batch_000005.pth'),
             ((1,1),'limit','epoch_0001_batch_000005.pth'), ((1,3),'pause','epoch_0002.pth')]
    for i,(at,how,file) in enumerate(stops[2:] if recipe=='early' else stops): # when a fit ends SaveModelCallback wants a file, which the first epoch writes
        learn,saver = run(tmp_path/'run', 9 if i else 1, at, how)
        assert saver.paused and saved(tmp_path/'run')[-1]==file
    learn,saver = run(tmp_path/'run', 9)
    have = end(learn)
    assert not saver.paused and {k for k in want if want[k]!=have[k]}==set()

def test_another_validation_meanwhile(tmp_path):
    "A callback that validates by itself does not end there"
    class Validates(Callback):
        order = 60 # after the recorder
        def __init__(self, at): self.at = at
        def after_epoch(self):
            if self.learn.epoch==self.at: self.learn.resume.pause()
            log = self.recorder.log.copy()
            with self.learn.validation_context(inner=True): self.learn._do_epoch_validate()
            self.recorder.log = log
    def run(path, at):
        learn,saver = learner(path),Resume('run', every_min=1000, ignore=Validates)
        fit('flat_cos', learn, 3, Validates(at), saver)
        return learn,saver
    want = end(run(tmp_path/'whole', None)[0])
    assert run(tmp_path/'run', 1)[1].paused and saved(tmp_path/'run')[-1]=='epoch_0002.pth'
    assert end(run(tmp_path/'run', None)[0])==want

@linux
def test_a_signal_to_workers_too(tmp_path):
    "A scheduler signals all processes of a job"
    want = reference(tmp_path, 'one_cycle', 2, workers=2)
    def run():
        os.setpgrp()
        try: fit('one_cycle', learner(tmp_path/'run', workers=2), 2, ignoring(every_min=1000), SignalAt(0, 2, group=True))
        except SystemExit as e: os._exit(e.code)
    assert child(run)==128+signal.SIGTERM and saved(tmp_path/'run')[-1]=='epoch_0000_batch_000003.pth'
    learn = learner(tmp_path/'run', seed=9, workers=2)
    fit('one_cycle', learn, 2, resume(every_min=1000))
    assert end(learn)==want

def test_signals_of_others(tmp_path, monkeypatch):
    "Who handles a signal already goes on doing so; and a run that is saved between epochs only leaves signals alone"
    got = []
    for kw,handler in ((each,lambda *o: got.append(o[0])), ({},signal.SIG_DFL)):
        before = signal.signal(signal.SIGUSR1, handler)
        class Look(Callback):
            def before_batch(self): got.append(signal.getsignal(signal.SIGUSR1)==handler)
        try: fit('one_cycle', learner(tmp_path), 1, Resume('a' if kw else 'b', ignore=(Look,SignalAt), **kw), Look(), *([SignalAt(0, 1, signal.SIGUSR1)] if kw else []))
        finally: signal.signal(signal.SIGUSR1, before)
    assert got.count(signal.SIGUSR1)==1 and False not in got

class Clock(Callback):
    "A clock that stands still but for batches, which take 3 s (in the second epoch 9 s in validation), and for writing, which takes 2 s"
    def __init__(self, m):
        self.now,write = 1e9,R.write_checkpoint
        m.setattr(R.time, 'monotonic', lambda: self.now)
        m.setattr(R, 'write_checkpoint', lambda *args: self.pass_by(2) or write(*args))
    def pass_by(self, seconds): self.now += seconds
    def after_batch(self): self.pass_by(9 if self.learn.epoch==1 and not self.learn.training else 3)

def test_max_minutes(tmp_path, monkeypatch):
    "Ends in time, as often as it takes, with time left to save; in validation too, if it takes longer than the one before"
    want,n,ends = reference(tmp_path, 'accumulate', 3),0,[]
    while n<20:
        with monkeypatch.context() as m:
            clock = Clock(m)
            learn,cb,start,n = learner(tmp_path/'run', seed=1 if not n else 9),Resume('run', max_minutes=.7, ignore=Clock),clock.now,n+1
            out = fit('accumulate', learn, 3, cb, clock)
        ends.append(saved(tmp_path/'run')[-1])
        if not cb.paused: break
        assert 30<=clock.now-start<=42 and 'pauses after' in out and 'the same call goes on' in out
    assert 'epoch_0001_batch_000005.pth' in ends and end(learn)==want

def test_max_minutes_needs_a_name(tmp_path):
    with pytest.raises(ValueError, match="max_minutes=5: .*save='run1'"): learner(tmp_path).fit_long(1, max_minutes=5)

class OwnRng(Digits):
    "A dataset with a generator of its own, of which each worker has a copy"
    def __init__(self, *args):
        super().__init__(*args)
        self.rng = np.random.default_rng(3)
    def __getitem__(self, i): return super().__getitem__(i)[0]*self.rng.random(),self.y[i]

def own_rng(path, seed=1, workers=0, **kw):
    set_seed(seed)
    return learner(path, seed, dls=DataLoaders(DataLoader(OwnRng(0,320,False), bs=64, shuffle=True, num_workers=workers), DataLoader(Digits(1000,1200,False), bs=64)), **kw)

def test_a_loader_that_cannot_be_wound(tmp_path):
    "Named at once; saved between epochs, continued there; a time limit ends it there; without workers it can be wound"
    with pytest.warns(UserWarning, match=r"saves between epochs only.*its workers draw from generators of their own: dataset.rng"), pytest.raises(KeyboardInterrupt):
        fit('flat_cos', own_rng(tmp_path/'run', workers=1), 3, resume(**each), Stop('after_batch', 1, batch=3))
    assert saved(tmp_path/'run')==['epoch_0000.pth','epoch_0001.pth']
    learn,cb = own_rng(tmp_path/'run', seed=9, workers=1),resume(max_minutes=0)
    with saying_nothing(): fit('flat_cos', learn, 3, cb)
    assert cb.paused and not cb.between_batches and saved(tmp_path/'run')[-1]=='epoch_0002.pth'
    with saying_nothing(): fit('flat_cos', learn, 3, resume())
    assert end(learn)==reference(tmp_path, 'flat_cos', 3, own_rng_worker)
    stops_and_goes(tmp_path/'b', 'flat_cos', (1,3), n=2, make=own_rng)

def own_rng_worker(path, **kw): return own_rng(path, workers=1, **kw)

@contextmanager
def saying_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield

def test_other_loader_in_the_middle(tmp_path):
    "Saved in the middle of an epoch, and now the loader cannot begin there"
    with pytest.raises(KeyboardInterrupt): fit('flat_cos', own_rng(tmp_path), 3, resume(**each), Stop('after_batch', 1, batch=3))
    with pytest.raises(ValueError, match="middle of an epoch, after 1 of 3 epochs and 3 of 5 batches.*generators of their own.*resume='weights'"), saying_nothing():
        fit('flat_cos', own_rng(tmp_path, workers=1), 3, resume(**each))

def test_seeds_of_workers_are_told(tmp_path):
    "With workers, every_min changes what they draw"
    with pytest.raises(KeyboardInterrupt): fit('flat_cos', learner(tmp_path, workers=1), 2, resume(), Stop('after_batch', 1, batch=1))
    assert 'goes on with seeds of workers by batch (was by epoch), so not bit by bit' in fit('flat_cos', learner(tmp_path, workers=1), 2, resume(**each))

def test_fsdp_is_refused(tmp_path):
    class FSDPModule(nn.Sequential): pass
    learn = learner(tmp_path)
    learn.model = FSDPModule(*learn.model)
    with pytest.raises(ValueError, match=r"Resume\('run'\) cannot save a model that is spread over processes by FSDP"): fit('flat_cos', learn, 1, resume())

# --- written while training goes on

meanwhile = dict(every_min=1e-9)

def test_written_meanwhile(tmp_path, monkeypatch):
    "What is written is what was copied, however long it takes; one file at a time"
    write,busy,most = R.write_checkpoint,[],[]
    def slowly(path, state):
        busy.append(1)
        most.append(len(busy))
        time.sleep(.05 if state['batch'] else 0)
        write(path, state)
        busy.pop()
    monkeypatch.setattr(R, 'write_checkpoint', slowly)
    want,learn = reference(tmp_path, 'recursive', 3),learner(tmp_path/'run')
    with pytest.raises(KeyboardInterrupt): fit('recursive', learn, 3, resume(**meanwhile), Stop('after_batch', 1, batch=4))
    assert set(most)=={1} and not busy and any('batch' in o for o in saved(tmp_path/'run'))
    learn = learner(tmp_path/'run', seed=9)
    assert 'batches' in fit('recursive', learn, 3, resume(**meanwhile))
    assert end(learn)==want

def test_a_failure_to_write_is_told(tmp_path, monkeypatch):
    "After the next batch; what was saved before is whole"
    write,seen = R.write_checkpoint,[]
    def full(path, state):
        if state['batch']: raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        write(path, state)
    monkeypatch.setattr(R, 'write_checkpoint', full)
    class Look(Callback):
        def after_batch(self): seen.append(self.learn.iter); time.sleep(.05)
    learn = learner(tmp_path)
    with pytest.raises(OSError, match=r"Resume\('run'\) cannot write .*batch_000001.pth.*What is saved already is whole"): fit('flat_cos', learn, 2, Resume('run', ignore=Look, **meanwhile), Look())
    assert seen==[0,1] and saved(tmp_path)==['epoch_0000.pth']
    monkeypatch.undo()
    fit('flat_cos', learn, 2, resume(**meanwhile))
    assert end(learn)==reference(tmp_path, 'flat_cos', 2)

@linux
@pytest.mark.full
@pytest.mark.parametrize('workers', [0,2])
def test_killed_at_random_meanwhile(tmp_path, workers):
    "SIGKILL at random moments of a run that writes all the time"
    n = 4 if workers else 12
    want,rng = reference(tmp_path, 'recursive', n, workers=workers),random.Random(workers)
    def run(seed): return lambda: fit('recursive', learner(tmp_path/'run', seed=seed, workers=workers), n, resume(**meanwhile))
    for i in range(30):
        if not (pid := os.fork()): os._exit(child(run(1 if not saved(tmp_path/'run') else 50+i)))
        time.sleep(rng.uniform(.1, 1.5))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    learn = learner(tmp_path/'run', seed=97, workers=workers)
    fit('recursive', learn, n, resume(**meanwhile))
    assert end(learn)==want
