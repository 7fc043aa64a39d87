// Admin page: routes by hash, one view at a time; each view cleans up through its AbortSignal.
import { fill, h } from '../dom.js';
import { t } from '../i18n.js';
import { failure, requireSession, shell } from '../shell.js';
import { auditView } from './audit.js';
import { dataView } from './data.js';
import { jobsView } from './jobs.js';
import { labelsView } from './labels.js';
import { modelsView } from './models.js';
import { newJobView } from './newjob.js';
import { overviewView } from './overview.js';
import { peopleView } from './people.js';
import { projectChoice } from './project.js';
import { queueView } from './queue.js';
import { reviewView } from './review.js';
import { runView } from './run.js';
import { settingsView } from './settings.js';

const page = shell('admin');
document.body.classList.add('admin-page');

const TABS = [
  ['overview', '#/'],
  ['jobs', '#/jobs'],
  ['models', '#/models'],
  ['queue', '#/queue'],
  ['labels', '#/labels'],
  ['data', '#/data'],
  ['people', '#/people'],
  ['settings', '#/settings'],
  ['audit', '#/audit'],
];

/** Reviewers see the judgments and settle them; the rest is the administrators'. */
const ALLOWED = { admin: TABS.map(([name]) => name), reviewer: ['labels'] };

/** @type {[RegExp, string, (el: HTMLElement, context: any) => Promise<void>][]} */
const ROUTES = [
  [/^\/?$/, 'overview', overviewView],
  [/^\/jobs$/, 'jobs', jobsView],
  [/^\/jobs\/new(?:\/([\w.-]+))?$/, 'jobs', newJobView],
  [/^\/jobs\/([^/]+)$/, 'jobs', runView],
  [/^\/models$/, 'models', modelsView],
  [/^\/queue$/, 'queue', queueView],
  [/^\/sets\/([^/]+)$/, 'queue', reviewView],
  [/^\/labels$/, 'labels', labelsView],
  [/^\/data$/, 'data', dataView],
  [/^\/people$/, 'people', peopleView],
  [/^\/settings$/, 'settings', settingsView],
  [/^\/audit$/, 'audit', auditView],
];

const nav = h('nav', { class: 'tabs', 'aria-label': t('nav.admin') });
const projects = h('div', { class: 'row project-choice' });
const body = h('div', { class: 'admin-body' });
let leave = null;
let arrived = false; // the first view leaves the focus where the browser has it
let who = null; // the signed-in person

async function route() {
  leave?.abort();
  leave = new AbortController();
  const { signal } = leave;
  const [path, query] = location.hash.replace(/^#/, '').split('?');
  const match = ROUTES.map(([pattern, tab, view]) => ({ m: pattern.exec(path), tab, view })).find((r) => r.m);
  const reviewer = who.role === 'reviewer';
  /** @type {{m: any, tab: string, view: (el: HTMLElement, context: any) => Promise<void>}} */
  const home = reviewer ? { m: [], tab: 'labels', view: labelsView } : { m: [], tab: 'overview', view: overviewView };
  const open = match && (!reviewer || match.view === labelsView || match.view === reviewView);
  const { m, tab, view } = open ? match : home;
  fill(
    nav,
    TABS.filter(([name]) => ALLOWED[who.role].includes(name)).map(([name, href]) =>
      h('a', { href, 'aria-current': name === tab ? 'page' : null, text: t(`admin.${name}`) }),
    ),
  );
  // where the tabs scroll, the current one stays in sight
  nav.querySelector('[aria-current]')?.scrollIntoView({ block: 'nearest', inline: 'center' });
  const el = h('div', { class: `view ${tab}` });
  fill(body, el);
  window.scrollTo(0, 0);
  try {
    const heading = () => el.querySelector('h1');
    await view(el, { id: m[1] ? decodeURIComponent(m[1]) : null, query: new URLSearchParams(query ?? ''), signal, who, projectsChanged: () => projectChoice(projects) });
    if (signal.aborted) return;
    const name = view === overviewView ? t('admin.overview') : (heading()?.textContent ?? t(`admin.${tab}`));
    document.title = `${name} · instructd`;
    // after a change of view a reader begins at its heading; what the view itself has focused stays
    if (arrived && !el.contains(document.activeElement)) {
      const h1 = heading() ?? el;
      h1.tabIndex = -1;
      h1.focus({ preventScroll: true });
    }
    arrived = true;
  } catch (e) {
    if (e.name === 'AbortError' || signal.aborted) return;
    if (e.status === 401) return start();
    fill(el, failure(e, route));
  }
}

async function start() {
  try {
    who = await requireSession(page, { keyFirst: true });
    if (!ALLOWED[who.role]) {
      fill(page.main, h('div', { class: 'centre' }, h(
            'div',
            { class: 'notice', role: 'alert' },
            h('p', { text: t('admin.not_admin', { name: who.name }) }),
            h('a', { class: 'button primary', href: '/label', text: t('admin.to_label') }),
          )));
      return;
    }
    fill(page.main, nav, projects, body);
    if (who.role === 'admin') await projectChoice(projects);
    window.addEventListener('hashchange', route);
    await route();
  } catch (e) {
    fill(page.main, h('div', { class: 'centre' }, failure(e, start)));
  }
}

start();
