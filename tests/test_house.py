"""The rules of the house (CONTRIBUTING.md): modules are what the notebooks export, imports go one way, `import fastmix` is light,
notebooks are clean, whoever reads an exported cell finds prose, docments and an example beside it, and README follows `index`."""
import ast,copy,json,re,shutil,sys
import pytest
from house import by_hand, directives, exports, load, modules, name, nbs, notebooks, package, patched, python, root, text

# Who may import whom. Right of each module: the modules of ours that it builds on, which brings along what they build on.
builds_on = dict(
    draw='', blend='draw', target='draw', loss='target', callback='blend target loss', hidden='callback', schedule='callback',
    resume='', recipe='schedule resume', plots='callback recipe', show='callback plots', functional='draw blend target', distributed='', data='', models='data', runs='data',
    train='recipe show models runs distributed')
plain = 'draw blend target loss functional'.split()  # these know PyTorch, not fastai
plain_may = {'torch', 'numpy', 'fastcore', 'fastmix'} | set(sys.stdlib_module_names)

def reach(m):
    "All the modules that `m` may import"
    res = set(builds_on[m].split())
    return res.union(*map(reach, res)) if res else res

def imports(py):
    "`(line, module)` of every import in a file, inside functions too, ours with their full name"
    for o in ast.walk(ast.parse(py.read_text(encoding='utf-8'))):
        if isinstance(o, ast.Import): yield from ((o.lineno, a.name) for a in o.names)
        elif isinstance(o, ast.ImportFrom):
            if not o.level: yield o.lineno, o.module
            elif o.module: yield o.lineno, f'fastmix.{o.module}'
            else: yield from ((o.lineno, f'fastmix.{a.name}') for a in o.names)

exported = modules()
one_module = pytest.mark.parametrize('m', sorted(exported))
one_notebook = pytest.mark.parametrize('nb', notebooks(), ids=name)

# --- modules

def test_reexport(tmp_path):
    "`nbdev-export` in a copy of the repository gives the modules that are in the repository"
    for o in ('pyproject.toml', 'settings.ini', 'README.md'): shutil.copy(root/o, tmp_path)
    shutil.copytree(nbs, tmp_path/'nbs', ignore=shutil.ignore_patterns('.*', '__pycache__'))
    (tmp_path/'fastmix').mkdir()
    for m in by_hand-{'_modidx'}: shutil.copy(package/f'{m}.py', tmp_path/'fastmix')
    p = python('from nbdev.doclinks import nbdev_export; nbdev_export()', cwd=tmp_path)
    assert p.returncode==0, p.stderr
    def modules_in(d): return {o.relative_to(d).as_posix(): o.read_text(encoding='utf-8') for o in sorted(d.rglob('*.py'))}
    want,have = modules_in(tmp_path/'fastmix'),modules_in(package)
    assert set(want)==set(have), f'only from the notebooks {set(want)-set(have)}, only in fastmix/ {set(have)-set(want)}'
    stale = [k for k in want if want[k]!=have[k]]
    assert not stale, f'{stale} differ from the notebooks: edit the notebook, then run nbdev-export'

def test_all_brings_everything():
    "`fastmix.all` imports every exported module but the command, and gives each public name as its own module has it"
    code = "import json,importlib,fastmix.all as a\nfor m in {ms}:\n    o = importlib.import_module('fastmix.'+m)\n" \
           "    for n in o.__all__: assert getattr(a, n, None) is getattr(o, n), f'{{m}}.{{n}}'"
    p = python(code.format(ms=sorted(set(exported)-{'data','models','runs','train'})))
    assert p.returncode==0, p.stderr[-2000:]

def test_all_shadows_little():
    "After `from fastai.vision.all import *`, `from fastmix.all import *` changes the three names that it means to change"
    code = "import importlib, fastmix.all as a\nnames = {n for n in vars(a) if n[0]!='_'}\nfor m in ('vision', 'text', 'tabular'):\n" \
           "    f = vars(importlib.import_module(f'fastai.{m}.all'))\n    print(*[n for n in names if n in f and f[n] is not getattr(a, n)])"
    p = python(code)
    assert p.returncode==0, p.stderr[-2000:]
    assert set(p.stdout.split()) <= {'MixUp', 'CutMix', 'MixHandler'}

@pytest.mark.parametrize('m', sorted({p.stem for p in package.glob('*.py')}-by_hand))
def test_one_direction(m):
    assert m in builds_on, f'{m} is new: give it a place in `builds_on` and in CONTRIBUTING.md'
    py,may = package/f'{m}.py',reach(m)
    for line,o in imports(py):
        top,*rest = o.split('.')
        if top=='fastmix': assert rest and rest[0] in may, f'{py.name}:{line} imports {o}; {m} may import {sorted(may) or "nothing of ours"}'
        if m in plain: assert top in plain_may, f'{py.name}:{line} imports {o}; {m} knows torch, numpy and fastcore only'

def test_direction_is_one_way():
    for m in builds_on: assert m not in reach(m)

@pytest.mark.parametrize('what,without', [('fastmix', 'torch fastai numpy matplotlib'), ('fastmix.functional', 'fastai matplotlib'),
                                          ('fastmix._docs', 'torch fastai numpy matplotlib')])
def test_light_import(what, without):
    m = what.partition('.')[2]
    if m and not (package/f'{m}.py').exists(): pytest.skip(f'{what} does not exist yet')
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

public = """
import importlib, inspect, json, sys
from fastcore.docments import docments
m = importlib.import_module('fastmix.'+sys.argv[1])
found = {}
def look(nm, o):
    bad = found.setdefault(nm, [])
    if not (inspect.isclass(o) or callable(o)): return
    if not (getattr(o, '__doc__', None) or '').strip(): bad.append('no docstring')
    if inspect.isclass(o) and '__init__' not in o.__dict__: return
    try: sig = inspect.signature(o)
    except (TypeError, ValueError): return
    docs = docments(o, full=True, returns=False)
    for k,p in sig.parameters.items():
        if k in ('self', 'cls') or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD): continue
        if k not in docs or not docs[k]['docment']: bad.append(f'no docment for `{k}`')
for nm in m.__all__: look(nm, getattr(m, nm))
for nm in sys.argv[2:]:
    cls,meth = nm.split('.')
    look(nm, getattr(getattr(m, cls), meth))
print(json.dumps(found))
"""

@one_module
def test_public_names(m):
    "A docstring, a docment for each parameter, and an example in the notebook for each public name"
    p = python(public, m, *patched(exported[m]))
    assert p.returncode==0, p.stderr[-2000:]
    found = json.loads(p.stdout.splitlines()[-1])
    assert found, f'{m} exports nothing'
    bad = [f'{k}: {", ".join(v)}' for k,v in found.items() if v]
    examples = '\n'.join(text(c['source']) for c in load(exported[m])['cells'] if c['cell_type']=='code' and not exports(c))
    ours = {k for k in found if k.partition('.')[0] in found and '.' in k}  # events and the like, patched into our own classes
    bad += [f'{k}: no example' for k in found if k not in ours and not re.search(rf"\b{k.rpartition('.')[2]}\b", examples)]
    assert not bad, f'{m}\n'+'\n'.join(bad)

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
        cell('see [draw](00_draw.ipynb#plan), [t](tutorials/01_why.ipynb), [w](https://a.b/c.ipynb), ![p](images/p.png), [c](../CHANGELOG.md)\n\n'
             '```\n[x](y.ipynb)\n```', 'markdown')])
    md,files = readme(nb, 'https://s/d')
    assert files=={'index_files/c0-0.png': bytes([0,1,2])}
    assert 'secret' not in md and 'plot()' not in md and 'Figure' not in md
    assert md.startswith('# title\n\n> summary\n\n<!-- ')
    assert '![](index_files/c0-0.png)\n\n```python\n1+1\n2+2\n```\n\n    4\n\n    a\n\n    b\n\n<table>1</table>\n\n' in md
    for o in ('[draw](https://s/d/draw.html#plan)', '[t](https://s/d/tutorials/why.html)', '[w](https://a.b/c.ipynb)',
              '![p](nbs/images/p.png)', '[c](CHANGELOG.md)', '[x](y.ipynb)'): assert o in md
