'use strict';

module.exports = async (event, context) => {
  const name = event.query.name || 'world';
  return context.status(200).headers({ 'Content-Type': 'text/plain; charset=utf-8' }).succeed(`Hello, ${name}!\n`);
};
