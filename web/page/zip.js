// A ZIP file of pictures, which are compressed already: stored as they are.
// The format is PKWARE's APPNOTE 6.3.10: local headers (4.3.7), the directory (4.3.12) and its end (4.3.16).

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit += 1) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});
const UTF8 = 0x800; // the flag that says how names are encoded
const ZIP_VERSION = 20;
const FIRST_DAY = 0x21; // 1 January 1980, as MS-DOS counts

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** Return numbers as little-endian bytes; each comes with its width in bytes. */
function packed(...fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, width]) => sum + width, 0)));
  let at = 0;
  for (const [value, width] of fields) {
    view[width === 2 ? 'setUint16' : 'setUint32'](at, value, true);
    at += width;
  }
  return view.buffer;
}

/** Return a Blob. `files` are `{ name, bytes }`, with names of their own. */
export function zip(files) {
  const [parts, directory] = [[], []];
  let offset = 0;
  for (const { name, bytes } of files) {
    const encoded = new TextEncoder().encode(name);
    const about = [
      [ZIP_VERSION, 2], [UTF8, 2], [0, 2], [0, 2], [FIRST_DAY, 2], [crc32(bytes), 4],
      [bytes.length, 4], [bytes.length, 4], [encoded.length, 2], [0, 2],
    ];
    const header = packed([0x04034b50, 4], ...about);
    parts.push(header, encoded, bytes);
    directory.push(packed([0x02014b50, 4], [ZIP_VERSION, 2], ...about, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]), encoded);
    offset += header.byteLength + encoded.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.byteLength, 0);
  const end = packed([0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [size, 4], [offset, 4], [0, 2]);
  return new Blob([...parts, ...directory, end], { type: 'application/zip' });
}
