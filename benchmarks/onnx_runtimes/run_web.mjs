// Greedy generation with onnxruntime-web, the browser's WebAssembly build, on Node: folder, request file, answer file.
import fs from 'node:fs';
import path from 'node:path';
import * as ort from 'onnxruntime-web';

const [folder, requestFile, answerFile] = process.argv.slice(2);
const request = JSON.parse(fs.readFileSync(requestFile, 'utf8'));
const config = JSON.parse(fs.readFileSync(path.join(folder, 'config.json'), 'utf8'));
const headSize = config.head_dim ?? config.hidden_size / config.num_attention_heads;
ort.env.wasm.numThreads = 1;
ort.env.logLevel = 'error';

const dataFile = 'model.onnx_data';
const session = await ort.InferenceSession.create(fs.readFileSync(path.join(folder, 'model.onnx')), {
  executionProviders: ['wasm'],
  externalData: [{ path: dataFile, data: fs.readFileSync(path.join(folder, dataFile)) }],
});
const int64 = (values) => new ort.Tensor('int64', BigInt64Array.from(values.map(BigInt)), [1, values.length]);
const pastNames = session.inputNames.filter((name) => name.startsWith('past_key_values'));
let past = Object.fromEntries(
  pastNames.map((name) => [
    name,
    new ort.Tensor('float32', new Float32Array(0), [1, config.num_key_value_heads, 0, headSize]),
  ]),
);

const ids = [...request.prompt];
let fresh = ids;
for (let step = 0; step < request.max_new_tokens; step += 1) {
  const start = ids.length - fresh.length;
  const output = await session.run({
    input_ids: int64(fresh),
    attention_mask: int64(new Array(ids.length).fill(1)),
    position_ids: int64(fresh.map((_, index) => start + index)),
    ...past,
  });
  const size = output.logits.dims[2];
  const last = output.logits.data.subarray((fresh.length - 1) * size, fresh.length * size);
  fresh = [last.reduce((best, value, index) => (value > last[best] ? index : best), 0)];
  ids.push(fresh[0]);
  past = Object.fromEntries(pastNames.map((name) => [name, output[name.replace('past_key_values', 'present')]]));
}
fs.writeFileSync(answerFile, JSON.stringify(ids));
