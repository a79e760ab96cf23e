/**
 * postgresql.auto.conf: the settings that ALTER SYSTEM wrote, and that recovery is told with.
 * Source: guc-file.l for the form of lines; a later line wins over an earlier one.
 */

export const AUTO_CONF = "postgresql.auto.conf";

export type ConfSettings = readonly (readonly [name: string, value: string])[];

/** Settings of an earlier recovery, which would lead this one elsewhere; two targets are refused by the server. */
const OF_RECOVERY = /^(restore_command|recovery_target(_\w+)?)$/i;

const LINE = /^\s*([A-Za-z_][\w$.]*)(?:\s*=|\s)/;

export const settingOfLine = (line: string): string | undefined => LINE.exec(line)?.[1]?.toLowerCase();

/** Whether recovery would follow this line. */
export const isOfRecovery = (line: string): boolean => OF_RECOVERY.test(settingOfLine(line) ?? "");

/**
 * Every line stays; those of an earlier recovery, and of what is set anew, become comments that say so. The new ones come last.
 *
 * @param note  one line, for whoever finds this in a year
 */
export function withRecoverySettings(text: string, settings: ConfSettings, note: string): string {
  const lines = text.split("\n");
  if (lines.at(-1) === "") lines.pop();
  const names = new Set(settings.map(([name]) => name));
  const isReplaced = (line: string) => isOfRecovery(line) || names.has(settingOfLine(line) ?? "");
  const kept = lines.map((line) => (isReplaced(line) ? `# Before ${note}: ${line.trimStart()}` : line));
  return [...kept, `# Written by ${note}:`, ...formatSettings(settings), ""].join("\n");
}

export const formatSettings = (settings: ConfSettings): readonly string[] =>
  settings.map(([name, value]) => `${name} = ${quoteValue(value)}`);

/** Quotes are doubled; a backslash begins an escape, so it is doubled as well (DeescapeQuotedString). */
export function quoteValue(value: string): string {
  if (/[\0\n\r]/.test(value)) throw new RangeError("a setting cannot go over a line's end");
  return `'${value.replaceAll("\\", "\\\\").replaceAll("'", "''")}'`;
}
