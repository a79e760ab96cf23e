/** Tar archives of any members, also those that no honest backup has: plain ustar headers, written byte for byte. */

export interface RawMember {
  readonly name: string;
  readonly type: "file" | "hard link" | "symbolic link" | "directory" | "device" | "fifo";
  readonly content?: string;
  /** Where a link leads. */
  readonly target?: string;
}

const TYPES = { file: "0", "hard link": "1", "symbolic link": "2", device: "3", directory: "5", fifo: "6" } as const;
const BLOCK = 512;

export function rawTar(members: readonly RawMember[]): Uint8Array {
  const blocks = members.flatMap((member) => {
    const content = Buffer.from(member.content ?? "");
    const padding = Buffer.alloc((BLOCK - (content.byteLength % BLOCK)) % BLOCK);
    return [headerOf(member, content.byteLength), content, padding];
  });
  return Buffer.concat([...blocks, Buffer.alloc(2 * BLOCK)]);
}

function headerOf({ name, type, target = "" }: RawMember, sizeBytes: number): Uint8Array {
  const header = Buffer.alloc(BLOCK);
  const octal = (value: number, at: number, digits: number) =>
    void header.write(`${value.toString(8).padStart(digits, "0")}\0`, at);
  header.write(name, 0, 100);
  octal(type === "directory" ? 0o700 : 0o600, 100, 7);
  octal(0, 108, 7);
  octal(0, 116, 7);
  octal(sizeBytes, 124, 11);
  octal(0, 136, 11);
  header.fill(" ", 148, 156);
  header.write(TYPES[type], 156);
  header.write(target, 157, 100);
  header.write("ustar\0" + "00", 257);
  octal(
    header.reduce((sum, byte) => sum + byte, 0),
    148,
    6,
  );
  return header;
}
