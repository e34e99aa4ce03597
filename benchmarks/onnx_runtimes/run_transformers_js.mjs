// Greedy generation with transformers.js on Node: folder, request file, answer file.
import fs from 'node:fs';
import { AutoModelForCausalLM, Tensor, env } from '@huggingface/transformers';

const [folder, requestFile, answerFile] = process.argv.slice(2);
const request = JSON.parse(fs.readFileSync(requestFile, 'utf8'));
env.allowRemoteModels = false;
env.localModelPath = '';

const model = await AutoModelForCausalLM.from_pretrained(folder, { subfolder: '', device: 'cpu' });
const length = request.prompt.length;
const output = await model.generate({
  input_ids: new Tensor('int64', BigInt64Array.from(request.prompt.map(BigInt)), [1, length]),
  attention_mask: new Tensor('int64', new BigInt64Array(length).fill(1n), [1, length]),
  max_new_tokens: request.max_new_tokens,
  do_sample: false,
  eos_token_id: null,
});
fs.writeFileSync(answerFile, JSON.stringify(Array.from(output.data, Number)));
