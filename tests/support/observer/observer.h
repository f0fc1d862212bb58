/* A program that tells what a process sees in its container: lines of "key<TAB>value", the same keys on every run. */

#ifndef OBSERVER_H
#define OBSERVER_H

/* Begins the key of the values to come; the format is printf's. */
void at(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Writes "key<TAB>value"; control characters and backslashes of the value as \ooo. */
void is(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Writes the name of an errno; "ok" for 0. */
void is_errno(int number);
/* Writes what a small file holds, one value a line with the number of the line in the key. */
void file(const char *key, const char *path);
/* The octal mode, owner and kind of what a path names itself, with a device's number or a link's target. */
void place(const char *key, const char *path);

void observe_credentials(void);
void observe_process(void);
void observe_descriptors(void);
void observe_terminal(void);
void observe_mounts(void);
void observe_tree(void);
void observe_paths(char **paths);
void observe_kernel(void);
void observe_devices(void);
void observe_calls(void);

#endif
