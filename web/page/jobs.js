// Jobs: the pictures that were asked for since the page was opened, the oldest first.
// A job's state is queued, waiting, key (it needs another access key), done, failed or stopped.
import { hashOf } from './form.js';
import { session } from './kept.js';

const MOST = 60; // further ones are forgotten, and their pictures freed

export const jobs = [];
const listeners = [];

export const isUnfinished = ({ state }) => ['queued', 'waiting', 'key'].includes(state);
/** Return whether its connection was lost: by the network, or because the page was left. */
export const isCut = ({ state, error }) => state === 'failed' && !error.status;
const isLeft = (job) => isUnfinished(job) || isCut(job);
export const jobOf = (wanted) => jobs.findLast((job) => hashOf(job.wanted) === hashOf(wanted));

/** Call `listener` with each job that changes. */
export const onChange = (listener) => listeners.push(listener);

export function addJob(job) {
  jobs.push(job);
  const old = jobs.length > MOST && jobs.find((one) => !isUnfinished(one));
  if (old) removeJob(old);
  change(job, {});
}

export function removeJob(job) {
  jobs.splice(jobs.indexOf(job), 1);
  if (job.image?.src.startsWith('blob:')) URL.revokeObjectURL(job.image.src);
  change(job, { state: 'removed' });
}

export function change(job, what) {
  Object.assign(job, what);
  keep();
  for (const listener of listeners) listener(job);
}

/** Keep what a reload has to ask for again: jobs without an answer, and the variants beside them. */
function keep() {
  const left = jobs.filter((job) => isLeft(job) || (job.state === 'done' && job.group?.jobs.some(isLeft)));
  const groups = [...new Set(left.map((job) => job.group))];
  const queue = left.map((job) => {
    const group = job.group ? groups.indexOf(job.group) : null;
    return { wanted: job.wanted, group, isDrawn: job.state === 'done' };
  });
  session.set('queue', queue.length ? JSON.stringify(queue) : null);
}

/** Return the jobs that were left when the page was closed, with their groups. */
export function keptJobs() {
  try {
    const groups = {};
    return (JSON.parse(session.get('queue')) ?? []).map(({ wanted, group, isDrawn }) => {
      const job = { state: 'queued', wanted, isDrawn };
      if (group !== null) joinGroup(groups[group] ??= newGroup(wanted), job);
      return job;
    });
  } catch {
    return [];
  }
}

/** Variants of one prompt, side by side on the stage. */
export const newGroup = (wanted) => ({ state: 'group', wanted, jobs: [] });

export function joinGroup(group, job) {
  job.group = group;
  group.jobs.push(job);
}
