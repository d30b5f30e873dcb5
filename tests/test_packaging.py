"What pip is told, what the archives hold, and whether the workflows and the dependencies agree with the code."
import ast,configparser,importlib.metadata as md,re,shutil,subprocess,sys,tarfile,zipfile
from email.parser import Parser
from pathlib import Path
import pytest,yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from house import package, root

try: import tomllib
except ImportError: import tomli as tomllib

ini = configparser.ConfigParser(interpolation=None)
ini.read(root/'settings.ini', encoding='utf-8')
cfg,project = ini['DEFAULT'],tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['project']
extras = {k.partition('_')[0]: cfg[k].split() for k in cfg if k.endswith('_requirements')}
version = re.fullmatch(r'(?s).*^__version__ = "([^"]+)".*', (package/'__init__.py').read_text(encoding='utf-8'), re.M)[1]

def build_archives(tmp):
    skip = shutil.ignore_patterns('.git', '__pycache__', '*.egg-info', 'build', 'dist', '_proc', '_docs')
    shutil.copytree(root, tmp/'src', ignore=skip)
    p = subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', tmp/'out', tmp/'src'], capture_output=True, text=True)
    assert p.returncode==0, p.stdout[-3000:]+p.stderr[-3000:]

@pytest.fixture(scope='module')
def built(made_once):
    "The repository's source archive, and the wheel built *from that archive*, as `python -m build` makes them"
    out = made_once('archives', build_archives)/'out'
    return next(out.glob('*.tar.gz')), next(out.glob('*.whl'))

@pytest.fixture(scope='module')
def wheel(built):
    with zipfile.ZipFile(built[1]) as z: return {n: z.read(n).decode() for n in z.namelist()}

@pytest.fixture(scope='module')
def metadata(wheel): return Parser().parsestr(next(v for k,v in wheel.items() if k.endswith('dist-info/METADATA')))

def test_archives(built, wheel):
    with tarfile.open(built[0]) as t: have = {n.partition('/')[2] for n in t.getnames()}
    assert {'settings.ini', 'pyproject.toml', 'setup.py', 'README.md', 'LICENSE', 'CHANGELOG.md'} <= have
    modules = {p.relative_to(root).as_posix() for p in package.rglob('*.py')}|{'fastmix/py.typed'}|{p.relative_to(root).as_posix() for p in package.rglob('*.pyi')}
    files = {k for k in wheel if '.dist-info/' not in k}
    assert files==modules, f'missing {modules-files}, too much {files-modules}'
    assert any(k.endswith('LICENSE') for k in wheel)

def test_metadata(metadata):
    "Nothing that is declared `dynamic` was dropped on the way"
    assert metadata['Name']=='fastmix' and metadata['Version']==version
    assert metadata['Author']==cfg['author'] and metadata['License-Expression']=='Apache-2.0'
    assert metadata['Summary']==project['description'] and metadata['Requires-Python']==f">={cfg['min_python']}"
    assert metadata['Keywords'].replace(' ', '').split(',')==cfg['keywords'].split()
    pythons = [o.rpartition(' ')[2] for o in metadata.get_all('Classifier') if 'Python :: 3.' in o]
    assert pythons[0]==cfg['min_python'] and pythons[-1]==cfg['max_python']
    assert metadata.get_payload()==(root/'README.md').read_text(encoding='utf-8')

def test_requirements(metadata):
    have = [Requirement(o) for o in metadata.get_all('Requires-Dist')]
    always = {(canonicalize_name(r.name), str(r.specifier)) for r in have if not r.marker}
    assert always=={(canonicalize_name(r.name), str(r.specifier)) for r in map(Requirement, cfg['requirements'].split())}
    assert set(metadata.get_all('Provides-Extra'))==set(extras)
    for k,v in extras.items():
        got = {canonicalize_name(r.name) for r in have if r.marker and r.marker.evaluate({'extra': k})}
        assert got=={canonicalize_name(Requirement(o).name) for o in v}, k

def test_entry_points(wheel):
    ep = configparser.ConfigParser()
    ep.read_string(next(v for k,v in wheel.items() if k.endswith('entry_points.txt')))
    assert ep['nbdev']['fastmix']=='fastmix._modidx:d'
    module,_,func = ep['console_scripts']['fastmix-train'].partition(':')
    py = root/(module.replace('.', '/')+'.py')
    assert func in {o.name for o in ast.parse(py.read_text(encoding='utf-8')).body if isinstance(o, ast.FunctionDef)}

def third_party(py):
    for o in ast.walk(ast.parse(py.read_text(encoding='utf-8'))):
        names = [a.name for a in o.names] if isinstance(o, ast.Import) else [o.module] if isinstance(o, ast.ImportFrom) and not o.level else []
        yield from (n.partition('.')[0] for n in names)

def test_only_what_is_used():
    "Each import is a requirement, and each requirement is imported"
    used = {m for p in package.rglob('*.py') for m in third_party(p)}-set(sys.stdlib_module_names)-{'fastmix'}
    dist = md.packages_distributions()
    used = {canonicalize_name(dist.get(m, [m])[0]) for m in used}
    needed,optional = ({canonicalize_name(Requirement(o).name) for o in v} for v in (cfg['requirements'].split(), sum(extras.values(), [])))
    assert used <= needed|optional, f'{used-needed-optional} imported, and in no requirements of settings.ini'
    assert needed <= used, f'{needed-used} required, and imported nowhere'

def test_all_without_the_extras():
    "What few need is not asked for by the star import, nor by a fit"
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('accelerate','timm'): raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, Missing())
from fastai.vision.all import *
from fastmix.all import *
dls = DataLoaders.from_dsets(*[[(torch.randn(3,4,4), torch.tensor(i%2)) for i in range(8)]]*2, bs=4, num_workers=0)
learn = Learner(dls, nn.Sequential(Flatten(), nn.Linear(48,2)), CrossEntropyLossFlat(), cbs=[MixUp(),CutMix()])
with learn.no_bar(), learn.no_logging(): learn.fit_long(1, advice=False)
print('accelerate' in sys.modules, 'timm' in sys.modules)
"""
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, cwd=root)
    assert p.returncode==0, p.stderr[-3000:]
    assert p.stdout.split()==['False','False']

def test_installed_command():
    "The command that pip installed is there and says how it is used"
    exe = shutil.which('fastmix-train', path=str(Path(sys.executable).parent))
    assert exe, "pip install -e '.[dev]' first"
    p = subprocess.run([exe, '--help'], capture_output=True, text=True)
    assert p.returncode==0 and '--epochs' in p.stdout, p.stderr[-2000:]

# --- workflows

workflows = sorted((root/'.github/workflows').glob('*.yml'))
def workflow(nm): return yaml.safe_load((root/f'.github/workflows/{nm}.yml').read_text(encoding='utf-8'))
def steps(w): return [s for j in w['jobs'].values() for s in j['steps']]

def test_workflows():
    assert {p.stem for p in workflows}=={'test', 'docs', 'release'}
    a,b = (int(cfg[k].split('.')[1]) for k in ('min_python', 'max_python'))
    assert workflow('test')['jobs']['test']['strategy']['matrix']['python']==[f'3.{i}' for i in range(a, b+1)]
    quarto = [s for s in steps(workflow('docs')) if 'quarto' in s.get('uses', '')]
    assert len(quarto)==1 and re.fullmatch(r'\d+\.\d+\.\d+', quarto[0]['with']['version'])
    for p in workflows:
        for s in steps(workflow(p.stem)):
            if 'uses' in s: assert re.search(r'@(v\d|release/v\d|[0-9a-f]{40})', s['uses']), f"{p.name}: pin {s['uses']}"

def test_the_workflow_runs_everything_once():
    "In parallel; what is the same for every Python with one, the rare cases too"
    w = workflow('test')
    assert '-n auto' in w['env']['PYTEST_ADDOPTS'] and '--durations' in w['env']['PYTEST_ADDOPTS']
    for o in w['env']['ONCE'].split(): assert (root/o.partition('=')[2]).exists(), o
    runs = [s['run'] for s in w['jobs']['test']['steps'] if 'pytest' in s.get('run', '')]
    assert len(runs)==2 and "!= '3.11' && env.ONCE" in runs[0] and runs[1].endswith('-m full')

def test_lowest_bounds():
    "The workflow's oldest environment holds just what settings.ini says is the lowest"
    assert any('lowest-direct' in s.get('run', '') for s in steps(workflow('test')))
    for o in sum(extras.values(), cfg["requirements"].split()): assert ">=" in o, f'{o} has no lower bound'

def test_ci_run():
    "CI runs the README's own test command, in an environment that it removes"
    sh = (root/'.ci/run').read_text(encoding='utf-8')
    assert subprocess.run(['bash', '-n', root/'.ci/run']).returncode==0
    for o in ("pip install", "-e '.[dev,loops]'", 'python -m pytest', 'trap'): assert o in sh
    for o in ("pip install -e '.[dev]'", 'python -m pytest'): assert o in (root/'README.md').read_text(encoding='utf-8')

# --- publishing

def test_twine(built):
    "What PyPI would say of the archives"
    pytest.importorskip('twine', reason='twine is not installed')
    p = subprocess.run([sys.executable, '-m', 'twine', 'check', '--strict', *map(str, built)], capture_output=True, text=True)
    assert p.returncode==0 and p.stdout.count('PASSED')==2, p.stdout+p.stderr

def test_citation():
    "CITATION.cff names this version and the address of the repository"
    cff = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    assert cff['version']==version and cff['cff-version']=='1.2.0' and cff['title'].startswith('fastmix')
    assert cff['repository-code']==project['urls']['Repository']

def test_issue_templates():
    "Forms that GitHub can read: a name, a description, and fields with a label"
    for f in (root/'.github'/'ISSUE_TEMPLATE').glob('*.yml'):
        d = yaml.safe_load(f.read_text(encoding='utf-8'))
        if f.stem=='config': continue
        assert {'name','description','body'} <= set(d)
        for o in d['body']: assert o['type'] in ('textarea','input','dropdown','markdown','checkboxes') and o['attributes']['label'] and o['id']
