// The format of a sealed value, written anew with nothing but what is published about it: two bytes
// of length, a session key under RSA-OAEP (SHA-256, with the label), the value under AES-256-GCM
// with a nonce of zeros.
import { constants, createCipheriv, createDecipheriv, privateDecrypt, publicEncrypt, randomBytes, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";

const nonce = Buffer.alloc(12);
const oaep = (key, label) => ({
  key,
  padding: constants.RSA_PKCS1_OAEP_PADDING,
  oaepHash: "sha256",
  ...(label === "" ? {} : { oaepLabel: Buffer.from(label) }),
});

function open(key, { label, value }) {
  const bytes = Buffer.from(value, "base64");
  const end = 2 + bytes.readUInt16BE(0);
  const session = privateDecrypt(oaep(key, label), bytes.subarray(2, end));
  const decipher = createDecipheriv("aes-256-gcm", session, nonce);
  decipher.setAuthTag(bytes.subarray(-16));
  return Buffer.concat([decipher.update(bytes.subarray(end, -16)), decipher.final()]);
}

function seal(certificate, { label, value }) {
  const session = randomBytes(32);
  const wrapped = publicEncrypt(oaep(new X509Certificate(certificate).publicKey, label), session);
  const length = Buffer.alloc(2);
  length.writeUInt16BE(wrapped.length);
  const cipher = createCipheriv("aes-256-gcm", session, nonce);
  const payload = Buffer.concat([cipher.update(Buffer.from(value, "base64")), cipher.final()]);
  return Buffer.concat([length, wrapped, payload, cipher.getAuthTag()]);
}

const { what, key, cases } = JSON.parse(readFileSync(0, "utf8"));
const work = { open, seal }[what];
process.stdout.write(JSON.stringify(cases.map((each) => work(key, each).toString("base64"))));
