// OpenAI's client for Node: a chat, a stream, and a tool that it runs by itself.
//
// npm install openai; then: node examples/clients/openai_node.mjs http://127.0.0.1:8000/v1

import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none" });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "How is the weather in Rome?" }];
const answer = await client.chat.completions.create({ model, messages, max_tokens: 16 });
console.log(answer.choices[0].message.content);
for await (const chunk of client.chat.completions.stream({ model, messages, max_tokens: 16 }))
  console.log("chunk:", chunk.choices[0]?.delta.content);
const parameters = { type: "object", properties: { city: { enum: ["Paris", "Rome"] } } };
Object.assign(parameters, { required: ["city"], additionalProperties: false });
const weather = ({ city }) => `The sun shines on ${city}.`;
const tool = { name: "weather", function: weather, parse: JSON.parse, parameters };
const tools = [{ type: "function", function: { ...tool, description: "The weather." } }];
const tool_choice = { type: "function", function: { name: "weather" } };
const runner = client.chat.completions.runTools({ model, messages, tools, tool_choice });
console.log("the tool's result:", await runner.finalFunctionToolCallResult());
