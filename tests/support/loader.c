/* The loader of a hostile image: it runs inside the interpreter that the kernel was asked to start, and tries to write
 * to that interpreter's program file. Afterwards a shell tries the same through the descriptor that stays open (3). */

#if defined(__x86_64__)
enum { OPENAT = 257, READLINKAT = 267, WRITE = 1, EXECVE = 59 };
static long call(long n, long a, long b, long c, long d) {
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}
#else
enum { OPENAT = 56, READLINKAT = 78, WRITE = 64, EXECVE = 221 };
static long call(long n, long a, long b, long c, long d) {
    register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}
#endif

static const char attack[] =
    "(echo evil > /proc/self/fd/3) 2>&1; (echo evil >> /proc/self/fd/3) 2>&1; echo evil 2>&1 >&3; echo done";

__attribute__((noreturn)) void _start(void) {
    static char text[4096];
    static const char exe[] = "/proc/self/exe";
    static char *args[] = {"sh", "-c", (char *)attack, 0}, *env[] = {"PATH=/bin", 0};
    long length = call(READLINKAT, -100, (long)exe, (long)text, sizeof text);
    call(WRITE, 1, (long)text, length, 0);
    if (call(OPENAT, -100, (long)exe, 1, 0) < 0)
        call(WRITE, 1, (long)" refused", 8, 0);
    call(WRITE, 1, (long)"\n", 1, 0);
    call(OPENAT, -100, (long)exe, 0, 0);
    call(EXECVE, (long)"/bin/sh", (long)args, (long)env, 0);
    for (;;)
        ;
}
