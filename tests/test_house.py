"""The rules of the house (CONTRIBUTING.md): modules are what the notebooks export, imports go one way, `import fastmix` is light,
notebooks are clean, whoever reads an exported cell finds prose, docments and an example beside it, and README follows `index`."""
import ast,copy,importlib,inspect,json,re,shutil,sys,typing
import pytest
from house import (by_hand, directives, exports, groups, load, module_file, module_names, modules, name, nbs, notebooks, package, patched,
                   plain_groups, python, root, text)

plain_may = {'torch', 'numpy', 'fastcore', 'fastmix'} | set(sys.stdlib_module_names)  # all that a plain room may import
strangers = [('checkpoint.fingerprint', 'checkpoint.state')]  # two rooms that do not know each other, and share what lies below

def imports(m):
    "`(line, module)` of every import in module `m`, inside functions too, ours with their full name"
    py = module_file(m)
    here = ['fastmix', *m.split('.')[:-1]]
    for o in ast.walk(ast.parse(py.read_text(encoding='utf-8'))):
        if isinstance(o, ast.Import): yield from ((o.lineno, a.name) for a in o.names)
        elif isinstance(o, ast.ImportFrom):
            above = '.'.join(here[:len(here)+1-o.level]) if o.level else ''
            frm = '.'.join(filter(None, (above, o.module)))
            if o.module and frm!='fastmix': yield o.lineno, frm
            else: yield from ((o.lineno, f'{frm}.{a.name}') for a in o.names)

exported = modules()
one_module = pytest.mark.parametrize('m', list(exported))
one_notebook = pytest.mark.parametrize('nb', notebooks(), ids=name)

# --- modules

def test_reexport(tmp_path):
    "`nbdev-export` in a copy of the repository gives the modules that are in the repository"
    for o in ('pyproject.toml', 'settings.ini', 'README.md'): shutil.copy(root/o, tmp_path)
    shutil.copytree(nbs, tmp_path/'nbs', ignore=shutil.ignore_patterns('.*', '__pycache__'))
    for m in by_hand-{'_modidx'}:
        to = tmp_path/module_file(m).relative_to(root)
        to.parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(module_file(m), to)
    p = python('from nbdev.doclinks import nbdev_export; nbdev_export()', cwd=tmp_path)
    assert p.returncode==0, p.stderr
    def modules_in(d): return {o.relative_to(d).as_posix(): o.read_text(encoding='utf-8') for o in sorted(d.rglob('*.py'))}
    want,have = modules_in(tmp_path/'fastmix'),modules_in(package)
    assert set(want)==set(have), f'only from the notebooks {set(want)-set(have)}, only in fastmix/ {set(have)-set(want)}'
    stale = [k for k in want if want[k]!=have[k]]
    assert not stale, f'{stale} differ from the notebooks: edit the notebook, then run nbdev-export'

def test_rooms_stand_in_folders():
    "Each module has a notebook in a folder of its group, numbered from 00 in reading order, and named as the module"
    assert not by_hand & set(exported)
    assert set(exported)|by_hand==set(module_names())
    for m,nb in exported.items(): assert nb.parent.name in groups and re.fullmatch(rf"\d\d_{m.rpartition('.')[2]}", nb.stem), f'{m} comes from {name(nb)}'
    for g in groups:
        numbers = [int(nb.stem[:2]) for nb in exported.values() if nb.parent==nbs/g]
        assert numbers==list(range(len(numbers))), f'nbs/{g} is numbered {numbers}'

@one_module
def test_one_direction(m):
    "A room imports only from rooms that are read before it, so no import runs back up and none runs in a circle"
    before = list(exported)[:list(exported).index(m)]
    for line,o in imports(m):
        top,_,room = o.partition('.')
        if top=='fastmix' and room!='__version__': assert room in before, f'{m}, line {line}, imports {o}, which is not read before it'
        if exported[m].parent.name in plain_groups: assert top in plain_may, f'{m}, line {line}, imports {o}: it knows torch, numpy and fastcore only'

def test_imports_are_seen(tmp_path, monkeypatch):
    "What `test_one_direction` reads: each way to import, in a sub-package too"
    monkeypatch.setitem(imports.__globals__, 'module_file', lambda m: tmp_path/'m.py')
    (tmp_path/'m.py').write_text('import a.b\nfrom c.d import e\nfrom fastmix import f\nfrom . import g\nfrom .h import i\nfrom .. import j\nfrom ..k import l\n'
                                 'def f():\n    from .m import n')
    seen = [o for _,o in imports('checkpoint.here')]
    assert seen=='a.b c.d fastmix.f fastmix.checkpoint.g fastmix.checkpoint.h fastmix.j fastmix.k fastmix.checkpoint.m'.split()
    assert [o for _,o in imports('here')][3:5]==['fastmix.g', 'fastmix.h']

def test_contributing_has_the_house():
    "Its table names every room, in reading order"
    rows = re.findall(r'^\| ([^|]*)\| `([\w.]+)` \|', (root/'CONTRIBUTING.md').read_text(encoding='utf-8'), flags=re.M)
    assert [m for _,m in rows]==list(exported)
    for g in groups: assert sum(f'`{g}/`' in o for o,_ in rows)==1, g

@pytest.mark.parametrize('a,b', strangers)
def test_strangers(a, b):
    for x,y in ((a, b), (b, a)): assert f'fastmix.{y}' not in {o for _,o in imports(x)}, f'{x} imports {y}'

def defined(m):
    "The names that module `m` defines at its top: functions, classes and assigned names; a method patched into a class is none"
    def names(body):
        for o in body:
            if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                if not any(ast.unparse(d).startswith('patch') for d in o.decorator_list): yield o.name
            elif isinstance(o, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
                for t in o.targets if isinstance(o, ast.Assign) else [o.target]:
                    yield from (n.id for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
            for k in ('body', 'orelse', 'finalbody', 'handlers'):
                if isinstance(o, (ast.If, ast.Try, ast.With, ast.For, ast.ExceptHandler)): yield from names(getattr(o, k, []))
    return set(names(ast.parse(module_file(m).read_text(encoding='utf-8')).body))-{'__all__', '_all_'}

def test_one_name_one_meaning():
    "No name, public or private, is defined in two modules"
    where = {}
    for m in set(module_names())-{'_modidx'}:
        for o in defined(m): where.setdefault(o, []).append(m)
    twice = {k: sorted(v) for k,v in where.items() if len(v)>1}
    assert not twice, f'one name, one meaning: {twice}'

# --- what users import

all_names = """MixUp CutMix CutMixUp ResizeMix FMix RecursiveMix RICAP ZetaMix ManifoldMixUp MixHandler find_layers
    MixFactors MixSchedule hesitation off_after warm_up MixRecorder EMA LONG run_wd
    Resume FolderInUse OtherRun newest_checkpoint read_checkpoint write_checkpoint
    show_mix mix_label plot_lam plot_run plot_schedule planned_run""".split()

old_paths = dict(  # import paths of 0.1 that README, the tutorials and DESIGN name, with what users take from them
    callback='MixHandler MixUp CutMix CutMixUp ResizeMix FMix RecursiveMix', hidden='ManifoldMixUp find_layers',
    functional='mixup_batch cutmix_batch resizemix_batch fmix_batch mix_targets Mixup', schedule='MixFactors MixSchedule warm_up off_after hesitation',
    resume='Resume FolderInUse OtherRun write_checkpoint read_checkpoint newest_checkpoint', recipe='LONG run_wd EMA',
    show='show_mix mix_label plot_lam planned_run plot_schedule plot_run', train='train_cli digit_dls small_resnet make_model folder_dls mix_cbs')

def test_all_is_what_users_call():
    "`from fastmix.all import *` brings these names and no others, each as its own module has it"
    ns = {}
    exec('from fastmix.all import *', ns)
    assert set(ns)-{'__builtins__'}==set(all_names)
    for o in all_names:
        home = sys.modules[getattr(ns[o], '__module__', None) or 'fastmix.recipe'] if o!='LONG' else importlib.import_module('fastmix.recipe')
        assert home.__name__.startswith('fastmix.') and getattr(home, o) is ns[o], o

@pytest.mark.parametrize('m', old_paths)
def test_old_import_paths(m):
    "What users imported from 0.1 is there, and is the same object as in the room that it moved to"
    o = importlib.import_module(f'fastmix.{m}')
    for nm in old_paths[m].split():
        homes = [h for h in exported if nm in defined(h)]
        assert len(homes)==1 and getattr(o, nm, None) is getattr(importlib.import_module(f'fastmix.{homes[0]}'), nm), f'fastmix.{m}.{nm}'

def test_old_command(fork):
    p = fork('-m', 'fastmix.train', '--help', cwd=root)
    said = p.communicate()[0]
    assert p.returncode==0 and '--epochs' in said, said[-2000:]

def test_all_shadows_little(fork):
    "After `from fastai.vision.all import *`, `from fastmix.all import *` changes the three names that it means to change"
    code = "import importlib, fastmix.all as a\nnames = {n for n in vars(a) if n[0]!='_'}\nfor m in ('vision', 'text', 'tabular'):\n" \
           "    f = vars(importlib.import_module(f'fastai.{m}.all'))\n    print(*[n for n in names if n in f and f[n] is not getattr(a, n)])"
    p = fork('-c', code, cwd=root, both=False)
    out,err = p.communicate()
    assert p.returncode==0, err[-2000:]
    assert set(out.split()) <= {'MixUp', 'CutMix', 'MixHandler'}

@pytest.mark.parametrize('what,without', [('fastmix', 'torch fastai numpy matplotlib'), ('fastmix.functional', 'fastai matplotlib'), ('fastmix.forward', 'fastai matplotlib'),
                                          ('fastmix._docs', 'torch fastai numpy matplotlib')])
def test_light_import(what, without):
    p = python(f"import sys, {what}; print(*[m for m in {without.split()} if m in sys.modules])")
    assert p.returncode==0, p.stderr[-2000:]
    assert p.stdout.split()==[], f'import {what} brings {p.stdout}'

# --- notebooks

machine_path = re.compile(r'(?<![\w.~])(/(?:tmp|home|root|work|Users|private|opt|mnt|var/folders)/[\w.~-]+|[A-Z]:\\\\?Users\\)|site-packages|ipykernel_\d+')

def strings(o):
    "Every string in a cell, pictures left out"
    if isinstance(o, str): yield o
    elif isinstance(o, list): yield from map(text, [o]) if all(isinstance(x, str) for x in o) else (s for x in o for s in strings(x))
    elif isinstance(o, dict): yield from (s for k,v in o.items() if not k.startswith('image/') for s in strings(v))

@one_notebook
def test_clean(nb):
    "`nbdev-clean` would change nothing"
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    cfg,have = get_config(root),load(nb)
    want = copy.deepcopy(have)
    clean_nb(want, cfg.clear_all, clean_ids=cfg.clean_ids)
    for a,b in zip(want['cells'], have['cells']): assert a==b, f"{name(nb)}: nbdev-clean would change cell {b.get('id')}"
    assert want==have, f'{name(nb)}: nbdev-clean would change its metadata'

@one_notebook
def test_no_errors_no_paths(nb):
    for c in load(nb)['cells']:
        for o in c.get('outputs', []): assert o['output_type']!='error', f"{name(nb)}, cell {c['id']}: an error is saved in it"
        for s in strings([c['source'], c.get('outputs', [])]):
            found = machine_path.search(s)
            assert not found, f"{name(nb)}, cell {c['id']}: {found[0]!r} is a place on somebody's machine"
        for s in strings(c.get('outputs', [])):
            assert '█' not in s and '\r' not in s, f"{name(nb)}, cell {c['id']}: a progress bar in pieces; run the notebook in Jupyter"

@one_notebook
def test_title_and_summary(nb):
    "The first cell is a title and a one-line summary, as nbdev reads them"
    first = load(nb)['cells'][0]
    assert first['cell_type']=='markdown', f'{name(nb)} begins with code'
    assert re.fullmatch(r'# [^\n]+\n\n?> [^\n]+(\n.*)?', text(first['source']), flags=re.S), f'{name(nb)}: begin with `# title` and `> summary`'

def only_imports(cell): return all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in ast.parse(text(cell['source'])).body)

@one_module
def test_exported_cells(m):
    "Each exported cell is short and has prose beside it"
    nb = exported[m]
    cells = [c for c in load(nb)['cells'] if not {'hide','default_exp'} & set(directives(c)) or exports(c)]
    for before,c,after in zip([None]+cells, cells, cells[1:]+[None]):
        if not exports(c): continue
        src,where = text(c['source']).splitlines(), f"{name(nb)}, cell {c['id']}"
        assert len(src)<=60, f'{where}: {len(src)} lines; say it in pieces'
        assert max(map(len, src))<=140, f'{where}: a line of {max(map(len, src))} characters'
        if not only_imports(c):
            assert any(o and o['cell_type']=='markdown' for o in (before, after)), f'{where}: no prose beside it'

@one_module
def test_imports_apart(m):
    "The documentation runs each cell with an import in it, so an import stands in a cell of its own or in an exported one"
    for c in load(exported[m])['cells']:
        if c['cell_type']!='code' or exports(c) or directives(c).get('eval')=='false': continue
        code = '\n'.join('' if l.lstrip()[:1] in ('%','!') else l for l in text(c['source']).splitlines())
        has = any(isinstance(o, (ast.Import, ast.ImportFrom)) for o in ast.walk(ast.parse(code)))
        assert not has or only_imports(c), f"{name(exported[m])}, cell {c['id']}: an import beside other code"

# --- public names

def public_names(m):
    "`(name, object)` of what module `m` defines for others: functions, classes with their public methods, and what it patches into classes of others"
    o = importlib.import_module(f'fastmix.{m}')
    for nm in set(o.__all__) & defined(m):
        c = getattr(o, nm)
        if typing.get_origin(c) is not None: continue   # a name for a type, such as `Schedule`
        yield nm,c
        if not inspect.isclass(c): continue
        for k,f in vars(c).items():
            f = f.fget if isinstance(f, property) else getattr(f, '__func__', f)
            if k[0]!='_' and inspect.isfunction(f) and f.__module__==o.__name__: yield f'{nm}.{k}',f
    ours = set(o.__all__)
    for nm in patched(exported[m]):
        cls,meth = nm.split('.')
        if cls not in ours: yield nm,inspect.unwrap(getattr(getattr(o, cls), meth))

def parameters(o):
    "The parameters of a function or of a class that has a constructor of its own, but for `self` and the like"
    if inspect.isclass(o) and '__init__' not in o.__dict__ or not (inspect.isclass(o) or inspect.isfunction(o)): return {}
    return {k: p for k,p in inspect.signature(o).parameters.items() if k not in ('self', 'cls') and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

@one_module
def test_public_names(m):
    "A docstring and a docment for each parameter of each public name, and an example in the notebook"
    from fastcore.docments import docments
    found,bad = [],[]
    for nm,o in public_names(m):
        found.append(nm)
        own,_,meth = nm.rpartition('.')
        if not callable(o) or own and meth not in patched_into(m, own): continue
        if not (o.__doc__ or '').strip(): bad.append(f'{nm}: no docstring')
        if not parameters(o): continue
        docs = docments(o, full=True, returns=False)
        bad += [f'{nm}: no docment for `{k}`' for k in parameters(o) if k not in docs or not docs[k]['docment']]
    assert found, f'{m} exports nothing'
    examples = '\n'.join(text(c['source']) for c in load(exported[m])['cells'] if c['cell_type']=='code' and not exports(c))
    ours = {k for k in found if k.partition('.')[0] in found and '.' in k}  # events and the like, patched into our own classes
    bad += [f'{k}: no example' for k in found if k not in ours and not re.search(rf"\b{k.rpartition('.')[2]}\b", examples)]
    assert not bad, f'{m}\n'+'\n'.join(bad)

def patched_into(m, cls): return {o.partition('.')[2] for o in patched(exported[m]) if o.startswith(f'{cls}.')}

@one_module
def test_typed(m):
    "Each public parameter and what each public function returns has a type; fastai's events return nothing and need not say so"
    bad = []
    for nm,o in public_names(m):
        bad += [f'{nm}({k})' for k,p in parameters(o).items() if p.annotation is p.empty]
        event = re.fullmatch('(before|after)_.*', nm.rpartition('.')[2]) and '.' in nm
        if inspect.isfunction(o) and not event and inspect.signature(o).return_annotation is inspect.Signature.empty: bad.append(f'{nm}(...) ->')
    assert not bad, f'{m}: no type for '+', '.join(bad)

# --- README

def test_readme():
    from fastmix._docs import readme
    from nbdev.config import get_config
    md,files = readme(load(nbs/'index.ipynb'), get_config(root).doc_url)
    again = 'run python -m fastmix._docs'
    assert md==(root/'README.md').read_text(encoding='utf-8'), f'README.md is not what index.ipynb says: {again}'
    have = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.glob('index_files/*')}
    assert have==files, f'the pictures of README.md are not those of index.ipynb: {again}'
    for url in re.findall(r'\]\(([^)\s]+)', md):
        if not re.match(r'\w+:|#', url): assert (root/url.partition('#')[0]).exists(), f'README.md links to {url}, which does not exist'

def test_llms():
    "The list of pages for language models is that of the sidebar"
    from fastmix._docs import llms
    from nbdev.config import get_config
    assert llms(nbs, get_config(root))==(nbs/'llms.txt').read_text(encoding='utf-8'), 'nbs/llms.txt is stale: run python -m fastmix._docs'

def test_readme_from_notebook():
    "What becomes of each kind of cell, link and output"
    from fastmix._docs import readme
    def cell(source, kind='code', **kw): return dict(cell_type=kind, id='c0', source=source, metadata={}, **kw)
    png = dict(output_type='display_data', data={'image/png': 'AAEC', 'text/plain': '<Figure>'})
    nb = dict(cells=[
        cell('# title\n\n> summary', 'markdown'), cell('#| hide\nsecret()'), cell('#| echo: false\nplot()', outputs=[png]),
        cell(['1+1\n', '2+2'], outputs=[dict(output_type='execute_result', data={'text/plain': ['4']}),
                                        dict(output_type='stream', name='stdout', text='a\n\nb\n'),
                                        dict(output_type='display_data', data={'text/html': '<style>s</style>', 'text/plain': '<HTML>'}),
                                        dict(output_type='display_data', data={'text/html': ['<div><table>', '1</table></div>'], 'text/plain': '<HTML>'})]),
        cell('see [draw](mix/05_draw.ipynb#plan), [t](tutorials/01_why.ipynb), [k](kinds.ipynb), [w](https://a.b/c.ipynb), ![p](images/p.png), [c](../CHANGELOG.md)\n\n'
             '```\n[x](y.ipynb)\n```', 'markdown')])
    md,files = readme(nb, 'https://s/d')
    assert files=={'index_files/c0-0.png': bytes([0,1,2])}
    assert 'secret' not in md and 'plot()' not in md and 'Figure' not in md
    assert md.startswith('# title\n\n> summary\n\n<!-- ')
    assert '![](index_files/c0-0.png)\n\n```python\n1+1\n2+2\n```\n\n    4\n\n    a\n\n    b\n\n<table>1</table>\n\n' in md
    for o in ('[draw](https://s/d/mix/draw.html#plan)', '[k](https://s/d/kinds.html)', '[t](https://s/d/tutorials/why.html)', '[w](https://a.b/c.ipynb)',
              '![p](nbs/images/p.png)', '[c](CHANGELOG.md)', '[x](y.ipynb)'): assert o in md
