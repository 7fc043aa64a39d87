// A look into models: attention maps of a decoder and an encoder side by side, and what model sizes need.
import { fill, h } from '../dom.js';
import { t } from '../i18n.js';
import { currentSession, shell } from '../shell.js';
import { attentionView } from './attention.js';
import { planView } from './plan.js';

const page = shell('explore');
const attention = h('section', { class: 'explore-part', 'aria-labelledby': 'attention-title' });
const plan = h('section', { class: 'explore-part', 'aria-labelledby': 'plan-title' });
fill(page.main, h('div', { class: 'explore' }, h('h1', { text: t('explore.title') }), attention, plan));
attentionView(attention);
planView(plan);

currentSession()
  .then(page.setUser)
  .catch(() => {});
