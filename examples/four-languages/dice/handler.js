'use strict';

const { randomInt } = require('crypto');

module.exports = async (event, context) => {
  const sides = Number(event.query.sides || 6);
  if (!Number.isInteger(sides) || sides < 2 || sides > 1000) {
    return context.status(400).succeed({ error: 'sides must be a whole number from 2 to 1000' });
  }
  return context.status(200).succeed({ sides, rolled: randomInt(1, sides + 1) });
};
