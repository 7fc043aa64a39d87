// The loop as one picture, with counts and the next sensible action.
import { get } from '../api.js';
import { fill, h, svg } from '../dom.js';
import { percent } from '../figures.js';
import { has, num, t } from '../i18n.js';
import { recipeName, runName } from './jobs.js';
import { meanText, shareText, show } from './metrics.js';
import { bytes, countedNote, every, progressBar, progressText, stateTag } from './parts.js';
import { projectId } from './project.js';

/** What each `next_action` code of the server leads to: [node to light up, link]. */
const ACTIONS = {
  import: ['prompts', '#/data'],
  draw: ['completions', '#/queue'],
  rank: ['rankings', '/label'],
  train_sft: ['active', '#/jobs/new/sft'],
  train_reward: ['reward', '#/jobs/new/reward'],
  train_ppo: ['ppo', '#/jobs/new/ppo'],
  wait: ['ppo', '#/jobs'],
  promote: ['active', '#/models'],
};

/** The server's suggestion (`{action, about, reason, values, message}`), or one from the counts. */
export function suggestion(o) {
  const given = o.next_action ?? {};
  const c = o.counts ?? {};
  const code =
    given.action in ACTIONS
      ? given.action
      : o.running_jobs?.length
        ? 'wait'
        : !c.prompts
          ? 'import'
          : !c.judgments
            ? c.sets_open
              ? 'rank'
              : 'draw'
            : !o.active_reward
              ? 'train_reward'
              : 'train_ppo';
  const values = { ...given.values };
  if (values.kind) values.kind = recipeName(values.kind);
  for (const share of ['accuracy', 'low', 'high']) if (Number.isFinite(values[share])) values[share] = percent(values[share]);
  const own = `next.because_${given.reason}`;
  const why = given.reason && has(own) ? t(own, values) : t(`next.${code}_why`);
  const title = code === 'promote' && given.about === 'reward' ? t('next.promote_reward') : code === 'promote' && given.about === 'policy' ? t('next.promote_policy') : t(`next.${code}`);
  // a reward model that waits for a word lights up its own place, not the policy's
  const node = code === 'promote' && given.about === 'reward' ? 'reward' : ACTIONS[code][0];
  return { code, node, href: ACTIONS[code][1], text: title, why };
}

const arrow = (name, label) =>
  h(
    'div',
    { class: `arrow ${name}` },
    svg('svg', { viewBox: '0 0 48 16', 'aria-hidden': 'true' }, svg('path', { d: 'M2 8h42M38 2l6 6-6 6' })),
    h('span', { text: label }),
  );

const node = (name, lit, href, value, ...lines) =>
  h(
    'a',
    { class: `node ${name} ${lit === name ? 'next' : ''}`, href },
    h('span', { class: 'node-name', text: t(`loop.${name}`) }),
    h('strong', { class: 'node-value', text: value }),
    lines.filter(Boolean).map((text) => h('span', { class: 'node-line', text })),
  );

/** One line about a device that serves. */
function deviceText(stats) {
  if (!stats.works) return t('loop.device_fails', { device: stats.device });
  const figures = {
    device: stats.device,
    used: bytes(stats.models.used),
    total: bytes(stats.models.total),
    pages: num(stats.pages_used),
    all: num(stats.pages_total),
  };
  const share = stats.utilization;
  return Number.isFinite(share) ? t('loop.device_busy', { ...figures, share: percent(share) }) : t('loop.device', figures);
}

export async function overviewView(el, { signal }) {
  const draw = async () => {
    const o = await get('/admin/api/overview', { project: projectId() }, { signal });
    const c = o.counts;
    const own = o.project?.counts;
    /** With a project chosen: how many there are in all projects. */
    const ofAll = (n) => (own ? t('loop.of_all', { n }) : null);
    const next = suggestion(o);
    const { node: step, href } = next;
    const jobs = o.running_jobs; // queued ones too
    const running = jobs.filter((j) => j.state === 'running');
    const byKind = (kind) => running.filter((j) => j.kind === kind).length;
    // a reward run belongs to its own place in the picture, every other run to the policy's
    const policyRuns = running.length - byKind('reward');
    const lit = next.code === 'wait' && running.length && !policyRuns ? 'reward' : step;
    const go = next.code === 'wait' ? t('next.see') : t('next.go');
    const policy = o.active_policy;
    const reward = o.active_reward;
    const waiting = o.unpromoted_reward;
    const e = o.evidence;
    const accuracy = e.accuracy;
    fill(
      el,
      h(
        'div',
        { class: 'next-step' },
        h(
          'div',
          null,
          h('p', { class: 'eyebrow', text: t('next.title') }),
          h('h1', { text: next.text }),
          h('p', { class: 'muted', text: next.why }),
        ),
        h('a', {
          class: 'button primary',
          href: next.code === 'wait' && running.length === 1 ? `#/jobs/${running[0].id}` : href,
          text: go,
          'aria-label': `${go}: ${next.text}`,
        }),
      ),
      h(
        'div',
        { class: 'loop', role: 'group', 'aria-label': t('loop.title') },
        node('prompts', lit, '#/data', num((own ?? c).prompts ?? 0), ofAll(c.prompts ?? 0), t('loop.demonstrations', { n: c.demonstrations ?? 0 })),
        arrow('a1', t('loop.sample')),
        node('completions', lit, '#/queue', num(c.completions ?? 0), t('loop.feedback', { n: c.feedback_events ?? 0 })),
        arrow('a2', t('loop.rank')),
        node(
          'rankings',
          lit,
          '/label',
          num((own ?? c).judgments ?? 0),
          ofAll(c.judgments ?? 0),
          t('loop.sets', { n: (own ?? c).sets_open ?? 0 }),
          c.leases ? t('loop.leases', { n: c.leases }) : null,
          c.sets_stuck ? t('quality.stuck', { n: c.sets_stuck }) : null,
        ),
        arrow('a3', t('loop.learn')),
        node(
          'reward',
          lit,
          '#/models',
          reward?.name ?? waiting?.name ?? t('loop.none'),
          waiting ? t('loop.not_promoted') : null,
          reward ? (accuracy ? t('loop.accuracy', { v: shareText(accuracy) }) : t('loop.not_measured')) : null,
          accuracy ? t(accuracy.low > accuracy.chance ? 'loop.above_chance' : 'loop.at_chance') : null,
          reward && Number.isFinite(e.new_rankings) ? t('loop.new_rankings', { n: e.new_rankings }) : null,
          byKind('reward') ? t('loop.training') : null,
        ),
        arrow('a4', t('loop.optimise')),
        node(
          'ppo',
          lit,
          '#/jobs',
          policyRuns ? t('loop.running', { n: policyRuns }) : t('loop.idle'),
          c.jobs_queued ? t('loop.queued', { n: c.jobs_queued }) : null,
        ),
        arrow('a5', t('loop.promote')),
        node(
          'active',
          lit,
          '#/models',
          policy?.name ?? t('loop.none'),
          policy ? recipeName(policy.stage) : null,
          e.policy?.reward ? t('loop.policy_reward', { v: meanText(e.policy.reward.after) }) : null,
          e.policy?.kl ? t('loop.policy_kl', { v: show('kl', e.policy.kl.value) }) : null,
          policy ? t('loop.policy_rankings', { n: e.policy_rankings ?? 0 }) : null,
          ...(o.devices ?? []).map((stats) => deviceText(stats)),
        ),
        arrow('a6', t('loop.serve')),
      ),
      countedNote(o.counted),
      jobs.length
        ? h(
            'section',
            { class: 'panel block' },
            h(
              'header',
              { class: 'block-head' },
              h('h2', { text: t('loop.running_jobs') }),
              h('a', { href: '#/jobs', text: t('loop.all_jobs') }),
            ),
            h(
              'ul',
              { class: 'running' },
              jobs.map((j) =>
                h(
                  'li',
                  null,
                  h('a', { href: `#/jobs/${j.id}`, dir: 'auto', text: runName(j) }),
                  stateTag(j.state),
                  h('div', { class: 'grow' }, progressBar(j)),
                  h('span', { class: 'muted', text: progressText(j) }),
                ),
              ),
            ),
          )
        : null,
    );
  };
  await draw();
  every(4, signal, async () => {
    if (!el.contains(document.activeElement)) await draw(); // never pulls a focused control away
  });
}
