// A client written from the published document alone: logs in, uploads a table, trains, waits and predicts. Prints one JSON document.
const [base, username, password] = process.argv.slice(2);

async function call(method, path, { token, json, form } = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (json) headers['Content-Type'] = 'application/json';
  const answer = await fetch(base + path, { method, headers, body: json ? JSON.stringify(json) : form });
  if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

const { access_token: token } = await call('POST', '/auth/login', { json: { username, password } });

const rows = Array.from({ length: 120 }, (_, n) => `${n % 7},${(n * 3) % 11},${n % 2 ? 'dog' : 'cat'}`);
const form = new FormData();
form.append('file', new File([['a,b,label', ...rows].join('\n')], 'data.csv', { type: 'text/csv' }));
form.append('name', 'From a browser');
form.append('dataset_type', 'classification');
const dataset = await call('POST', '/datasets/upload', { token, form });

const started = await call('POST', '/training/start', {
  token,
  json: { dataset_id: dataset.id, model_type: 'gradient_boosting', hyperparameters: { learning_rate: 0.1, batch_size: 32, epochs: 10 } },
});

let status;
do {
  await new Promise((soon) => setTimeout(soon, 200));
  status = await call('GET', `/training/status/${started.job_id}`, { token });
} while (['queued', 'running'].includes(status.status));

const results = await call('GET', `/training/results/${started.job_id}`, { token });
const predicted = await call('POST', `/models/${results.model_id}/predict`, { token, json: { inputs: [[1, 3], { a: 2, b: 6 }] } });
console.log(JSON.stringify({ dataset, started, status, results, predicted }));
