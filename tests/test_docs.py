"""The documentation, proved without Quarto: nbdev processes the pages in a copy of the repository, pandoc reads them, and what they
point at is there."""
import ast,importlib,json,pickle,re,shutil,subprocess
from types import SimpleNamespace
import pytest,yaml
from house import directives, groups, load, module_file, modules, name, nbs, notebooks, package, patched, python, root, text

pypandoc = pytest.importorskip('pypandoc', reason='pandoc comes with pypandoc_binary')
pandoc = pypandoc.get_pandoc_path()

build = """
import gc
from nbdev.doclinks import nbdev_export
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs
if __name__=='__main__':
    nbdev_export(); refresh_quarto_yml(); nbdev_sidebar()
    proc_nbs(force=True, n_workers=0)
    gc.freeze()   # each page's shell collects garbage when the process ends: half a minute
"""

def build_site(tmp):
    shutil.copy(root/'pyproject.toml', tmp)
    for o in (nbs, package): shutil.copytree(o, tmp/o.name, ignore=shutil.ignore_patterns('.*', '__pycache__'))
    if (root/'bench').exists(): shutil.copytree(root/'bench', tmp/'bench', ignore=shutil.ignore_patterns('.*', '__pycache__'))
    p = python(build, cwd=tmp, env={'PYTHONPATH': str(tmp)})
    assert p.returncode==0, p.stderr[-4000:]
    (tmp/'warnings.txt').write_text(p.stderr, encoding='utf-8')
    (tmp/'pages.pkl').write_bytes(pickle.dumps({html_name(nb): vars(Page(tmp/'_proc'/nb.relative_to(nbs))) for nb in notebooks()}))

@pytest.fixture(scope='module')
def site(made_once):
    "The folder of processed pages, made in a copy of the repository"
    return made_once('site', build_site)/'_proc'

def markdown(nb):
    "A processed notebook as the markdown that the page is made of; pictures in outputs are left out"
    res,fence = [],'`````'
    for c in nb['cells']:
        src,dirs = text(c['source']),directives(c)
        if c['cell_type']!='code':
            res.append(src)
            continue
        code = '\n'.join(l for l in src.splitlines() if not l.startswith('#|'))
        if dirs.get('echo')!='false' and code: res.append(f'{fence}python\n{code}\n{fence}')
        if dirs.get('output')=='false': continue
        for o in c.get('outputs', []):
            data = o.get('data', {})
            if 'text/html' in data: res.append(f"{fence}{{=html}}\n{text(data['text/html'])}\n{fence}")
            elif 'text/markdown' in data: res.append(text(data['text/markdown']))
            elif 'image/png' in data or 'image/svg+xml' in data: continue
            else: res.append(f"{fence}\n{text(o.get('text') or data.get('text/plain', ''))}\n{fence}")
    return '\n\n'.join(res)

def run_pandoc(md, to, *args, source='markdown'):
    p = subprocess.run([pandoc, '-f', source, '-t', to, *args], input=md, capture_output=True, text=True)
    assert p.returncode==0, p.stderr
    return p.stdout

def walk(o, kind):
    "The contents of each element of a `kind` in pandoc's tree"
    if isinstance(o, dict):
        if o.get('t')==kind: yield o['c']
        for v in o.values(): yield from walk(v, kind)
    elif isinstance(o, list):
        for v in o: yield from walk(v, kind)

def words(o): return ''.join(' ' if t=='Space' else c if t=='Str' else c[1] for t,c in inline(o))
def inline(o):
    if isinstance(o, dict):
        if o.get('t') in ('Str', 'Space', 'Code'): yield o['t'],o.get('c')
        else: yield from inline(o.get('c', []))
    elif isinstance(o, list):
        for v in o: yield from inline(v)

class Page:
    "What is on a page and what it points at"
    def __init__(self, path):
        self.nb,self.md = load(path),markdown(load(path))
        tree = json.loads(run_pandoc(self.md, 'json'))
        self.headings = {words(h[2]): h[1][0] for h in walk(tree, 'Header')}
        self.ids = {attr_id(c) for k in ('Header','Div','Span','Code','CodeBlock','Image','Table') for c in walk(tree, k)}-{''}
        self.ids |= set(re.findall(r'\bid="([^"]+)"', self.md))
        self.labels = {directives(c)['label'] for c in self.nb['cells'] if 'label' in directives(c)}
        self.links = [c[2][0] for c in walk(tree, 'Link')]
        self.names = [words(c[1]) for c in walk(tree, 'Link')]
        self.images = [c[2][0] for c in walk(tree, 'Image')]+re.findall(r'<img[^>]*\bsrc="([^"]+)"', self.md)
        self.links += re.findall(r'<a[^>]*\bhref="([^"]+)"', self.md)
        self.cites = [o['citationId'] for c in walk(tree, 'Cite') for o in c[0]]

def attr_id(c):
    "The identifier in the attributes of a pandoc element"
    return next((o[0] for o in c if isinstance(o, list) and len(o)==3 and isinstance(o[0], str) and isinstance(o[1], list)), '')

def html_name(nb): return re.sub(r'(^|/)\d+[a-zA-Z0-9]*_([^/]*)$', r'\1\2', name(nb).lower())+'.html'

@pytest.fixture(scope='module')
def pages(site): return {k: SimpleNamespace(**v) for k,v in pickle.loads((site.parent/'pages.pkl').read_bytes()).items()}

def docs_url():
    from nbdev.config import get_config
    return get_config(root).doc_url.rstrip('/')+'/'

one_page = pytest.mark.parametrize('page', [html_name(o) for o in notebooks()])

def test_build(site):
    "nbdev has nothing to complain of"
    said = (site.parent/'warnings.txt').read_text(encoding='utf-8')
    assert 'imports and other code' not in said, said

@one_page
def test_pandoc(pages, page):
    "Pandoc reads the page and writes its formulas without a warning"
    html = run_pandoc(pages[page].md, 'html5', '--fail-if-warnings', '--mathml', '--wrap=none')
    assert not re.search(r'<p>:::', html), f'{page}: a ::: that opens or closes nothing'
    assert '<script' not in html

@one_page
def test_outputs(pages, page):
    for c in pages[page].nb['cells']:
        assert 'execution' not in c['metadata'], f'{page}: timings in a cell hide its heading from "On this page"'
        for o in c.get('outputs', []): assert o['output_type']!='error', f'{page}: {o.get("ename")}'

@one_page
def test_links(pages, page):
    "Links lead to pages and headings that are there, and none is in another"
    for name in pages[page].names: assert '](' not in name, f'{page}: a link in a link, {name}'
    for url in pages[page].links:
        where = f'{page} links to {url}'
        assert url and ' ' not in url, where
        if url.startswith(docs_url()): url = '/'+url[len(docs_url()):]
        elif re.match(r'https?:|mailto:', url): continue
        path,_,part = url.partition('#')
        if path.startswith('/'): path = path[1:] or 'index.html'
        elif path:
            file = (nbs/page).parent/path
            assert path.endswith(('.ipynb', '.html')) or file.exists(), where
            if path.endswith('.ipynb'):
                assert file.exists(), where
                path = html_name(file.resolve())
            elif path.endswith('.html'): path = file.resolve().relative_to(nbs).as_posix()
            else: continue
        to = pages.get(path or page)
        assert to, f'{where}: no such page'
        if part: assert part in to.ids, f'{where}: no such heading'

@one_page
def test_images(pages, page):
    for url in pages[page].images:
        if re.match(r'https?:|data:', url): continue
        if url.startswith('attachment:'): assert any(url[11:] in c.get('attachments', {}) for c in pages[page].nb['cells']), url
        else: assert ((nbs/page).parent/url).exists(), f'{page} shows {url}, which does not exist'

@one_page
def test_references(pages, page):
    "What looks like `@fig-x` is a reference to a label that is there"
    p = pages[page]
    for o in p.cites: assert o in p.ids|p.labels, f'{page}: @{o} refers to nothing'

@pytest.mark.parametrize('m', sorted(modules()))
def test_api_headings(site, pages, m):
    "Each public function and class, and each method patched into a class, has its API heading, and the index leads to it"
    tree,page = ast.parse(module_file(m).read_text(encoding='utf-8')).body,pages[html_name(modules()[m])]
    want = [o.name for o in tree if isinstance(o, (ast.FunctionDef, ast.ClassDef)) and o.name[0]!='_'
            and not any(ast.unparse(d).startswith('patch') for d in o.decorator_list)]
    public = importlib.import_module(f'fastmix.{m}').__all__           # what `#| exporti` exports has no heading
    want = [o for o in want if o in public]
    want += patched(modules()[m])
    assert want, f'{m} has nothing public'
    for nm in want:
        assert nm in page.headings, f'{m}: no API heading for {nm}'
        assert nm.lower() in page.ids, f'{m}: no anchor for {nm}'

def hrefs(o):
    "The pages of a sidebar, in order"
    if isinstance(o, str): yield o
    elif isinstance(o, list): yield from (h for x in o for h in hrefs(x))
    elif isinstance(o, dict):
        if 'href' in o: yield o['href']
        yield from hrefs(o.get('contents', []))

def sidebar(): return yaml.safe_load((nbs/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']

def test_sidebar():
    "Each page stands in the sidebar once, and each entry is a page"
    have = list(hrefs(sidebar()))
    want = [nb.relative_to(nbs).as_posix() for nb in notebooks()]
    assert sorted(have)==sorted(want), f'nbs/sidebar.yml lacks {set(want)-set(have)}, has {set(have)-set(want)}, twice {[o for o in set(have) if have.count(o)>1]}'

def test_sidebar_is_the_house():
    "A section for each group of rooms, in reading order, with nothing but its rooms; the tutorials before them, reading matter after them"
    sections = [list(hrefs(o)) for o in sidebar() if isinstance(o, dict)]
    folders = [{h.rpartition('/')[0] for h in o} for o in sections]
    for o,f in zip(sections, folders):
        if f & {'tutorials', *groups}: assert len(f)==1 and o==sorted(o), f'{o}: one folder, in the order of its numbers'
    order = [f for fs in folders for f in sorted(fs) if f in ('tutorials', *groups)]
    assert order==['tutorials', *groups]
    assert all(not f & set(groups) for f in folders[:1]+folders[1+len(groups):])

def test_quarto_settings(site):
    "The settings are what nbdev makes of pyproject.toml, and the files that they name are there"
    assert (site/'nbdev.yml').read_text()==(nbs/'nbdev.yml').read_text(), 'nbs/nbdev.yml is not in step with pyproject.toml'
    q = yaml.safe_load((nbs/'_quarto.yml').read_text(encoding='utf-8'))
    named = q['metadata-files']+q['project']['resources']+[q['format']['html']['css']]+[q['website'][k].lstrip('/') for k in ('favicon', 'image')]
    for o in named: assert (nbs/o).exists() and (site/o).exists(), o

def test_snippets_run():
    "Python in the documentation stands in cells, where the tests run it; the first example, of 80 epochs, has a test of its own"
    for nb in notebooks():
        for c in load(nb)['cells']:
            if c['cell_type']=='markdown' and not (name(nb)=='index' and 'learn.fit_long(80' in text(c['source'])):
                assert not re.search(r'^```\{?\.?py', text(c['source']), flags=re.M), f'{name(nb)}, cell {c["id"]}'

@pytest.mark.parametrize('md', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'])
def test_root_pages(md):
    "The pages beside the code read well on GitHub, and their links lead somewhere"
    tree = json.loads(run_pandoc((root/md).read_text(encoding='utf-8'), 'json', '--fail-if-warnings', source='gfm'))
    for url in [c[2][0] for k in ('Link', 'Image') for c in walk(tree, k)]:
        if not re.match(r'https?:|#|mailto:', url): assert (root/url.partition('#')[0]).exists(), f'{md} links to {url}'
