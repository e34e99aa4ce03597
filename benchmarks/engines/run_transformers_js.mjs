// NLL of windows in transformers.js on Node, each in one forward pass: repository, request file, answer file.
import fs from 'node:fs';
import { AutoModelForCausalLM, Tensor, env } from '@huggingface/transformers';

const [repository, requestFile, answerFile] = process.argv.slice(2);
const request = JSON.parse(fs.readFileSync(requestFile, 'utf8'));
env.allowRemoteModels = false;
env.localModelPath = '';

const model = await AutoModelForCausalLM.from_pretrained(repository, { device: 'cpu', dtype: 'fp32' });
const int64 = (values) => new Tensor('int64', BigInt64Array.from(values.map(BigInt)), [1, values.length]);

const nll = (logits, ids) => {
  const [, , size] = logits.dims;
  let sum = 0;
  for (let row = 0; row < ids.length - 1; row += 1) {
    const values = logits.data.subarray(row * size, (row + 1) * size);
    const top = values.reduce((most, value) => Math.max(most, value), -Infinity);
    const total = values.reduce((all, value) => all + Math.exp(value - top), 0);
    sum += top + Math.log(total) - values[ids[row + 1]];
  }
  return sum / (ids.length - 1);
};

const found = [];
for (const ids of request.windows) {
  const { logits } = await model({
    input_ids: int64(ids),
    attention_mask: int64(ids.map(() => 1)),
    position_ids: int64(ids.map((_, index) => index)),
  });
  found.push(nll(logits, ids));
}
fs.writeFileSync(answerFile, JSON.stringify({ version: env.version, nll: found }));
