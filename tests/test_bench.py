"The comparison of accuracy: its data, its measures, that what is finished is not run again, and that the pages say what the result files say."
import ast,io,json,re,subprocess,sys
from contextlib import redirect_stderr,redirect_stdout
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from PIL import Image
from house import directives, load, nbs, root, text

sys.path.append(str(root/'bench'))
import accuracy as bench
import imbalanced
import pictures
import report
import speed
import step
from sklearn.datasets import load_digits

@pytest.fixture(scope='module')
def npz(tmp_path_factory):
    x,y = load_digits(return_X_y=True)
    x = (x.reshape(-1,8,8)*15).astype(np.uint8)
    path = tmp_path_factory.mktemp('bench')/'digits.npz'
    np.savez(path, x_train=x[:400], y_train=y[:400], x_test=x[400:600], y_test=y[400:600])
    return path

def run(*args):
    "The command in this process: its exit status and what it says"
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try: code = bench.main([*map(str, args)]) or 0
        except SystemExit as e: code = e.code
    return code, said.getvalue()

def test_finished_runs_are_not_run_again(npz, tmp_path):
    out = tmp_path/'out.jsonl'
    args = [npz, '--train', 200, '--epochs', 1, '--seeds', 0, '--workers', 1, '--no-flip', '--out', out, '--recipes']
    code,text = run(*args, 'none', 'mine=fit_long(n, lr, cbs=CutMixUp(), advice=False)')
    assert code==0 and '0 runs are there, 2 to do' in text, text
    lines = out.read_text()
    rows = [json.loads(o) for o in lines.splitlines()]
    assert {o['recipe'] for o in rows}=={'none','mine'} and all(0<o['accuracy']<1 and o['nll']>0 and 0<=o['ece']<=1 for o in rows)
    code,text = run(*args, 'none', '--plot', tmp_path/'p.png')
    assert code==0 and '1 runs are there, 0 to do' in text and out.read_text()==lines, text
    assert (tmp_path/'p.png').stat().st_size>1000
    code,text = run(*args, 'nonsense')
    assert code==2 and '--recipes nonsense: unknown' in text

def test_parts_never_meet(npz):
    d = np.load(npz)
    tr,va = bench.splits_of(d['y_train'], d['y_test'], 200, 'valid')
    tr2,te = bench.splits_of(d['y_train'], d['y_test'], 200, 'test')
    assert np.array_equal(tr, tr2) and len(tr)==200
    assert not set(tr)&set(va) and len(va)==200 and va.max()<400 and np.array_equal(te, np.arange(400,600))
    assert np.ptp(np.bincount(d['y_train'][tr])) <= 4                          # stratified

def test_batches_are_crops_and_flips():
    x = torch.arange(2*3*6*6.).view(2,3,6,6)
    y = torch.tensor([0,1])
    xb,yb = bench.batch(torch.nn.functional.pad(x, [4]*4), y, [1,0], flip=True, pad=4)
    assert xb.shape==(2,3,6,6) and yb.tolist()==[1,0]
    torch.manual_seed(0)
    seen = [bench.batch(torch.nn.functional.pad(x, [4]*4), y, [0], flip=True, pad=4)[0] for _ in range(400)]
    whole = torch.nn.functional.pad(x[0], [4]*4)
    crops = {(i,j,f): (o.flip(-1) if f else o) for i in range(9) for j in range(9) for f in (0,1) for o in [whole[:,i:i+6,j:j+6]]}
    found = {next(k for k,o in crops.items() if torch.equal(o, s[0])) for s in seen}
    assert len({k[0] for k in found})==len({k[1] for k in found})==9 and len({k[2] for k in found})==2
    assert torch.equal(bench.batch(x, y, [0,1])[0], x)                          # testing: as they are

def test_ece():
    y = np.array([0]*60+[1]*40)
    assert abs(bench.ece(np.tile([.6,.4], (100,1)), y)) < 1e-6                  # right 60% of the time at .6
    assert abs(bench.ece(np.tile([.9,.1], (100,1)), y) - .3) < 1e-6

def folder_of(path, w=40, h=40):
    "Two classes of ten pictures on either side, of noise in which the second class is dark"
    g = np.random.default_rng(0)
    for side in ('train','val'):
        for j,c in enumerate('ab'):
            (path/side/c).mkdir(parents=True)
            for i in range(10): Image.fromarray(g.integers(0, 255-150*j, (h,w,3), dtype=np.uint8)).save(path/side/c/f'{i}.png')
    return path

def test_a_folder(tmp_path):
    folder_of(tmp_path)
    valid,test = (bench.photo_dls(tmp_path, 8, part, 4, 32) for part in ('valid','test'))
    side = lambda dl: {o.parent.parent.name for o in dl.items}
    assert side(valid.train)==side(valid.valid)=={'train'} and len(valid.train_ds)==8 and len(valid.valid_ds)==12
    assert side(test.valid)=={'val'} and set(test.train.items)==set(valid.train.items) and not set(valid.train.items)&set(valid.valid.items)
    assert test.one_batch()[0].shape==(4,3,32,32)

def test_clipart(tmp_path):
    "Themes with enough different drawings become classes, on white, four of five to train with; the same folder each time"
    rng = np.random.default_rng(0)
    def draw(theme, n, side=60):
        for i in range(n):
            f = tmp_path/'png'/theme/('deep' if i%2 else '.')/f'{i}.png'
            f.parent.mkdir(parents=True, exist_ok=True)
            a = np.zeros((side,2*side,4), np.uint8)
            a[10:20,10:20] = *rng.integers(0, 255, 3),255                  # the rest is transparent
            Image.fromarray(a).save(f)
    draw('birds', 140); draw('few', 20); draw('small', 140, side=20); draw('unsorted', 140)
    (tmp_path/'png'/'birds'/'bad.png').write_bytes(b'no picture')
    (tmp_path/'png'/'birds'/'twice.png').write_bytes((tmp_path/'png'/'birds'/'0.png').read_bytes())
    def make(out): return subprocess.run([sys.executable, root/'bench'/'clipart.py', tmp_path/out, '--source', tmp_path/'png'], capture_output=True, text=True)
    for o in 'ab': assert make(o).returncode==0
    made = {o:{f.relative_to(tmp_path/o):f.read_bytes() for f in (tmp_path/o).rglob('*.png')} for o in 'ab'}
    assert made['a']==made['b'] and {f.parts[:2] for f in made['a']}=={('train','birds'),('val','birds')}
    assert [sum(f.parts[0]==o for f in made['a']) for o in ('train','val')]==[112,28]
    im = Image.open(tmp_path/'a'/'train'/'birds'/'000.png')
    assert im.size==(160,80) and im.mode=='RGB' and im.getpixel((159,79))==(255,255,255)
    assert make('a').returncode==2 and 'exists' in make('a').stderr

# --- pictures on a device

def test_crops_are_boxes_of_the_picture():
    "A box resized is that part of the picture; a negative sign mirrors it"
    x = torch.arange(2*3*8*8.).view(2,3,8,8)
    whole = torch.zeros(2,2),torch.ones(2,2)
    assert torch.allclose(pictures.resized(x, *whole, 8), x, atol=1e-3)
    assert torch.allclose(pictures.resized(x, *whole, 8, torch.tensor([1.,-1.])), torch.stack([x[0],x[1].flip(-1)]), atol=1e-3)
    corner = torch.full((2,2), -.5),torch.full((2,2), .5)                         # the upper left quarter
    assert torch.allclose(pictures.resized(x, *corner, 4), x[:,:,:4,:4], atol=1e-3)
    right = torch.tensor([[.5,0.]]*2),torch.tensor([[.5,1.]]*2)                  # width comes first
    assert torch.allclose(pictures.resized(x, *right, 8)[:,:,:,::2][...,1:-1], x[:,:,:,4:][...,1:-1]-.25, atol=1e-2)

def test_crops_are_drawn_as_fastai_draws_them():
    "Shares of the area, ratios of the sides, and nothing outside of the picture"
    torch.manual_seed(0)
    centre,half = pictures.crop_boxes(4000)
    assert (centre.abs()+half <= 1+1e-6).all()
    area,ratio = half.prod(1),half[:,0]/half[:,1]
    assert .33 < area.min() < .37 and area.max() <= 1 and abs(area.mean()-.66) < .03
    assert 3/4-.01 < ratio.min() and ratio.max() < 4/3+.01 and abs(ratio.log().mean()) < .02
    assert all(o.std()>.1 and abs(o.mean())<.02 for o in centre.T)

def test_small_pictures_are_shifted_and_flipped():
    x = torch.randint(0, 255, (3,3,6,6), dtype=torch.uint8)
    padded = torch.nn.functional.pad(x, [4]*4)
    same = lambda xb: xb
    crops = [o[:,i:i+6,j:j+6] for o in (padded[1],) for i in range(9) for j in range(9)]
    for _ in range(30):
        xb,yb = pictures.small_train(padded, torch.tensor([5,6,7]), True, same, [1,2])
        assert yb.tolist()==[6,7] and any(torch.equal(xb[0], o) or torch.equal(xb[0], o.flip(-1)) for o in crops)
    assert torch.equal(pictures.small_test(x, torch.tensor([5,6,7]), same, [2,0])[0], x[[2,0]])

def test_a_folder_is_decoded_once(tmp_path):
    "Squares from the middle, classes in order, test pictures last; batches are normalised and repeat from a seed"
    folder_of(tmp_path/'in', w=120, h=80)
    (tmp_path/'out').mkdir()
    x,y,y_test = pictures.arrays(pictures.decode(tmp_path/'in', tmp_path/'out', 80, workers=1))
    assert x.shape==(40,80,80,3) and x.dtype==np.uint8 and y.tolist()==y_test.tolist()==[0]*10+[1]*10
    first = np.asarray(Image.open(tmp_path/'in'/'train'/'a'/'0.png'))
    assert any(np.array_equal(first[:,20:100], o) for o in x[:10]) and x[10:20].mean() < x[:10].mean()-50
    data = pictures.OnDevice(tmp_path/'out', 'cpu')
    dls = data.dls('test', 5, 64)
    def batches():
        torch.manual_seed(1)
        return next(iter(dls.train))
    (xb,yb),(again,_) = batches(),batches()
    assert xb.shape==(5,3,64,64) and xb.dtype==torch.float32 and xb.is_contiguous(memory_format=torch.channels_last) and len(dls.train)==4 and dls.c==2
    xs = torch.cat([o[0] for o in dls.valid])
    assert xs.shape==(20,3,64,64) and abs(xs.mean())<.3 and (xs[:10].mean() > xs[10:].mean())
    assert all(torch.equal(a[0], b[0]) for a,b in zip(dls.valid, dls.valid))

def test_the_data_set_is_normalised(npz):
    "Mean 0 and standard deviation 1 over the training pictures; what is added around them is the mean"
    data = pictures.OnDevice(npz, 'cpu', 200)
    train,_ = pictures.splits_of(*data.ys, 200, 'test')
    x = data.norm(data.x[torch.as_tensor(train)])
    assert abs(x.mean())<1e-4 and abs(x.std()-1)<1e-2 and x.shape[1]==3
    assert len(data.dls('valid', 8, 8).valid.dataset)==200 and len(data.dls('test', 8, 8).valid.dataset)==200

def test_a_run_on_a_device(tmp_path):
    "A folder, on the CPU as the device: the same recipes and lines, with how they were made; nothing is started that would not end in time"
    folder_of(tmp_path/'in', 90, 80)
    out = tmp_path/'o.jsonl'
    args = [tmp_path/'in', '--device', 'cpu', '--size', 64, '--bs', 4, '--epochs', 1, '--seeds', 0, '--workers', 1, '--part', 'test', '--out', out,
            '--opt', 'ranger', '--smoothing', .1, '--recipes', 'mine=fit_long(n, lr, cbs=CutMixUp(), advice=False)']
    code,text = run(*args)
    assert code==0, text
    line, = map(json.loads, out.read_text().splitlines())
    assert (line['device'],line['card'],line['opt'],line['smoothing'],line['bf16'],line['data'])==('cpu','CPU','ranger',.1,False,'in') and 0<=line['accuracy']<=1
    code,text = run(*args, 'fastai_cutmix', '--until', 1e-3)
    assert code==0 and '1 runs are there, 1 to do' in text and 'would not end within' in text and len(out.read_text().splitlines())==1, text

def test_a_body_is_tuned(npz, tmp_path):
    "Trained on some classes, all but the last layer is kept; on the others a run begins with it, in two groups of parameters"
    d = np.load(npz)
    x,y,y_test = pictures.some_classes(np.concatenate([d['x_train'],d['x_test']])[...,None], d['y_train'], d['y_test'], '5:10')
    assert set(y)==set(y_test)==set(range(5)) and len(x)==len(y)+len(y_test) and np.array_equal(x[len(y):,:,:,0], d['x_test'][d['y_test']>=5])
    body,out = tmp_path/'body.pth',tmp_path/'o.jsonl'
    args = [npz, '--device', 'cpu', '--epochs', 1, '--seeds', 0, '--bs', 10, '--workers', 1, '--part', 'test', '--no-flip', '--size', 8, '--out', out]
    code,text = run(*args, '--classes', '0:5', '--recipes', 'none', '--save-body', body)
    assert code==0 and body.exists(), text
    code,text = run(*args, '--classes', '5:10', '--train', 50, '--body', body, '--recipes', 'tuned=fine_tune(n, lr)')
    line = json.loads(out.read_text().splitlines()[-1])
    assert code==0 and (line['classes'],line['body'],line['recipe'])==('5:10',str(body),'tuned') and 'save_body' not in line, text
    job = {**report.BEFORE, 'arch':'small_resnet', 'size':8, 'body':body}
    learn = bench.learner(job, pictures.OnDevice(npz, 'cpu', 50, 'test', '5:10').dls('test', 10, 8, False))
    learn.create_opt()
    kept = torch.load(body, weights_only=True)
    assert len(learn.opt.param_lists)==2 and all(torch.equal(v, kept[k]) for k,v in learn.model[:-1].state_dict().items())
    for bad,why in ((['--body', tmp_path/'none.pth'], 'no such file'), (['--seeds', 0, 1, '--save-body', body], 'one seed'), (['--classes', 'a'], "'a'")):
        code,text = run(*args, '--recipes', 'none', *bad)
        assert code==2 and why in text, text

def test_scaled_network():
    "At one it is the small network, at two it has about four times its parameters"
    size = lambda m: [tuple(o.shape) for o in m.parameters()]
    assert size(bench.model_of('small_resnet*1', 10, 32))==size(bench.model_of('small_resnet', 10, 32))
    one,two = (sum(o.numel() for o in bench.model_of(f'small_resnet*{k}', 10, 32).parameters()) for k in (1,2))
    assert 3.8 < two/one < 4

def test_until():
    "The longest epoch of the same kind of run says how long another takes; the first of a kind is tried"
    job = {k:0 for k in bench.LIKE}|dict(epochs=10)
    lines = [job|dict(epochs=5, seconds=10), job|dict(epochs=5, seconds=15), job|dict(arch='other', seconds=9999)]
    assert bench.seconds_an_epoch(job, lines)==3
    assert bench.in_time(job, lines, 30) and not bench.in_time(job, lines, 29) and bench.in_time(job, [], 1) and not bench.in_time(job, [], 0)

# --- a whole training step

def test_interval_of_a_median():
    "It holds the median in 95 of 100 cases or more, and not in all of them"
    assert step.interval(range(1, 7))==(3.5, 1, 6) and step.interval(range(1, 11))[1:]==(2, 9)
    rng = np.random.default_rng(0)
    held = [lo<=0<=hi for _,lo,hi in (step.interval(rng.standard_cauchy(25)) for _ in range(2000))]
    assert .94 < np.mean(held) < .98

def test_rounds_take_turns():
    "Each round takes every side and mix once, in changing orders; ratios are within a round"
    said = []
    def side(name, t): return lambda mix: said.append((name,mix)) or t*(2 if mix=='MixUp' else 1)*len(said)
    times = step.rounds(dict(a=side('a', 1), b=side('b', 3)), ['none','MixUp'], n=8)
    orders = [tuple(said[i:i+4]) for i in range(0, len(said), 4)]
    assert len(orders)==9 and all(len(set(o))==4 for o in orders) and len(set(orders[1:]))>3
    assert all(len(v)==8 for v in times.values()) and step.ratios(times, ('b','none'), ('a','none'))[0]>2

def test_step_in_a_process():
    "A row for each mix, beside plain training"
    row, = step.measure(None, ['none','MixUp'], n=3, size=32, bs=2, steps=1)
    assert row['case']=='MixUp' and .1 < row['ratio_lo'] <= row['ratio'] <= row['ratio_hi'] < 10 and row['rounds']==3

@pytest.mark.full
def test_step_in_two_processes():
    "This checkout against itself: a row for each mix here, there, and one beside the other"
    rows = step.measure(root, ['none','MixUp'], n=3, size=32, bs=2, steps=1)
    assert [o['case'] for o in rows]==['MixUp (here)','MixUp (there)','none, here and there','MixUp, here and there']
    assert all(.1 < o['ratio_lo'] <= o['ratio'] <= o['ratio_hi'] < 10 and o['rounds']==3 for o in rows)

@pytest.mark.full
def test_a_process_that_ends():
    with pytest.raises((RuntimeError,BrokenPipeError)): step.measure(None, ['none','NoMix'], n=1, size=32, bs=2, steps=1)

def test_speed_counts():
    "Launches are counted on a device without values, where a wait of the host would be an error; every peer that is there has a row"
    rows = speed.counts(SimpleNamespace(device='cpu'))
    assert len(rows)==6 and all(o['syncs']==0 and o['launches']>0 and o['meets'] for o in rows)
    x,y = torch.rand(4, 3, 8, 8),torch.randint(0, 10, (4,))
    whos = {who for _,who in speed.contenders(x, y, quick=True)}
    assert {'fastmix','fastai','torchvision'} <= whos

def test_ahead():
    "Beside the fastest of those that do the same; what mixes in place is no contest"
    rounds = {('MixUp batch','fastmix'):[2.], ('MixUp batch','b'):[3.], ('MixUp batch','c'):[4.], ('MixUp batch, in place','fastmix'):[1.], ('MixUp batch, in place','b'):[.1]}
    assert speed.ahead('MixUp batch', 'fastmix', rounds)==dict(target='ahead of b', meets=True)
    assert speed.ahead('MixUp batch, in place', 'fastmix', rounds)=={} and speed.ahead('MixUp batch', 'b', rounds)=={}

# --- the recipes of others

@pytest.mark.parametrize('name', ['timm','torchvision'])
def test_baselines(npz, name):
    "A batch has mixed and smoothed targets with one weight, the loss is the learner's own again afterwards, and the network learns"
    pytest.importorskip('timm')
    learn = bench.learner(dict(arch='small_resnet', size=8, device=None, opt='adam', smoothing=0., bf16=False, body=None), bench.npz_dls(npz, 200, 'test', 20, False))
    own,seen,lrs = learn.loss_func,[],[]
    class Look(bench.Callback):
        order = 95
        def before_batch(self):
            if self.training: seen.append(self.y.clone()); lrs.append(self.opt.hypers[-1]['lr'])
            else: assert self.y.ndim==1
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(Look()): getattr(learn, f'fit_{name}')(8, 6e-3)
    assert learn.loss_func is own and len(seen)==80 and learn.validate()[1]>.25
    for y in seen:
        assert y.shape==(20,10) and torch.allclose(y.sum(1), torch.ones(20), atol=1e-5)
        weights = (y.max(1).values*1000).round().unique()
        assert len(weights) <= 2                               # one weight a batch; equal labels are whole
    if name=='timm':
        assert min(y.min() for y in seen) > 0                  # smoothed in the target
        assert lrs[0]<1e-4 and lrs.index(max(lrs)) in range(15,25) and lrs[-1]<1e-4

# --- what the pages say

def replay(cells):
    "Run code cells; yields each with what it prints and shows as text. Cells that train or import more than the report have no place here"
    scope = {}
    for c in cells:
        *body,last = ast.parse(text(c['source'])).body
        shown = isinstance(last, ast.Expr)
        said = io.StringIO()
        with redirect_stdout(said):
            exec(compile(ast.Module([*body, *([] if shown else [last])], []), c['id'], 'exec'), scope)
            value = eval(compile(ast.Expression(last.value), c['id'], 'eval'), scope) if shown else None
        yield c, said.getvalue()+(value._repr_markdown_() if hasattr(value, '_repr_markdown_') else '')

def saved(cell):
    "What a cell of a notebook shows, pictures left out"
    return ''.join(text(o.get('text') or o['data'].get('text/markdown', '')) for o in cell['outputs'])

FIGURES = dict(evidence=None, index='1d8b18bf 6d5d92b0 1de00003 785c2a79 1de00013 36c34f5c') # pages, and which of their cells read result files; `None`: all

@pytest.mark.parametrize('page', FIGURES)
def test_pages_say_what_the_files_say(page, monkeypatch):
    "Each table, and each sentence with a figure in it, is what its cell makes of the result files today; the hidden cells hold the text to them"
    monkeypatch.chdir(nbs)
    which,n = FIGURES[page],0
    cells = [c for c in load(nbs/f'{page}.ipynb')['cells'] if c['cell_type']=='code' and (which is None or c['id'] in which)]
    for c,now in replay(cells):
        n += bool(now)
        assert now==saved(c), f'{page}, cell {c["id"]} is behind the result files: run the notebook again'
    assert n >= 3

def test_no_figure_is_typed():
    "Results in the text of the evidence come from cells; what stands in markdown are settings"
    for c in load(nbs/'evidence.ipynb')['cells']:
        if c['cell_type']!='markdown': continue
        prose = re.sub(r'```.*?```|`[^`]*`|\]\([^)]*\)', '', text(c['source']), flags=re.S)
        found = re.findall(r'\d+\.\d+|±\s*\d|\d\s+points', prose)
        assert not found, f"{c['id']}: {found}"

def lines(recipe, accuracies, **kwargs):
    return [dict(report.BEFORE, data='d', part='test', train=9, epochs=80, bs=1, lr=1., wd=0., arch='a', size=8, flip=True, recipe=recipe, call=recipe,
                 seed=s, accuracy=a, nll=1-a, ece=.1, **kwargs) for s,a in enumerate(accuracies)]

def test_leads():
    "The lead is over runs with the same seed"
    rows = lines('fit_long', [.7,.8,.9])+lines('none', [.6,.6])
    mean,se,n = report.lead(rows, 'none')
    assert abs(mean-15)<1e-9 and abs(se-5)<1e-9 and n==2
    assert report.say_lead(rows, 'none')=='15.0 ± 5.0 points above no mixing (2 seeds)'
    assert report.say_lead(rows, 'none', by='nll')=='0.150 ± 0.050 below no mixing (2 seeds)'
    t = report.table(rows).set_index('recipe')
    assert abs(t.accuracy['none']-60)<1e-9 and t.seeds['fit_long']==3 and abs(t.accuracy_se['fit_long']-100*np.std([.7,.8,.9], ddof=1)/3**.5)<1e-9
    assert abs(report.chance_error(90, 900)-1)<1e-9
    assert report.better(report.table(lines('fastai_mixup', [.5])+lines('fastai_cutmix', [.6])))=='fastai_cutmix'

def test_map_of_the_lead():
    "Over the better of a group at each point; points of one seed are hollow"
    rows = [dict(o, epochs=n) for n in (20,80) for o in lines('fit_long', [.7,.8])+lines('fastai_mixup', [.6,.6])+lines('fastai_cutmix', [.5 if n==20 else .65])]
    d = report.leads(rows, 'epochs')
    assert d[['x','who','seeds']].values.tolist()==[[20,"the better of fastai's",2], [80,"the better of fastai's",1]] and np.allclose(d.lead, [15,5])
    ax, = report.plot_leads(dict(epochs=d))[0]
    assert [o.get_markerfacecolor()=='white' for o in ax.lines if o.get_marker()=='o' and len(o.get_xdata())]==[False,True]

@pytest.mark.parametrize('draw', [report.plot, report.ranking])
def test_points_of_one_seed_are_hollow(draw):
    ax = draw(report.table(lines('fit_long', [.7,.8])+lines('none', [.6])))
    shown = {tuple(np.round(p, 4)): o.get_markerfacecolor() for o in ax.lines if o.get_marker()=='o' for p in np.column_stack(o.get_data())}
    k = 1 if draw is report.plot else 0
    hollow = {round(p[k]):c=='white' for p,c in shown.items()}
    assert hollow=={75:False, 60:True}

def test_each_line_is_one_run():
    "No file holds a run twice, and each line has what identifies it"
    for f in sorted(report.results.glob('*.jsonl')):
        if f.stem=='ideas': continue
        # `imbalanced.py` has lines of its own
        keys = [(o['mix'],o['seed'],o['epochs']) for o in imbalanced.read(f)] if f.stem=='digits_rare' else [report.key(o) for o in report.read([f])]
        assert keys and len(keys)==len(set(keys)), f.name
