/* System calls that a container has no business with, each tried in a child of its own with arguments that do nothing.
 *
 * Bad pointers, bad descriptors and bad flags: who is allowed to make the call learns EFAULT, EBADF or EINVAL. */

#define _GNU_SOURCE
#include "observer.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { DONE = 255 };
#define BAD 1L /* a pointer that nobody has */

static const struct {
    const char *name;
    long number, arguments[6];
} calls[] = {
#define CALL(name, ...) {#name, SYS_##name, {__VA_ARGS__}}
    CALL(acct, BAD),
    CALL(add_key, BAD, BAD),
    CALL(adjtimex, BAD),
    CALL(bpf, 99, 0, 0),
    CALL(chroot, BAD),
    CALL(clock_adjtime, 0, BAD),
    CALL(clock_settime, 1, BAD),
    CALL(clone3, 0, 0),
    CALL(delete_module, BAD, 0),
    CALL(fanotify_init, -1, -1),
    CALL(fanotify_mark, -1, 0, 0, -1, 0),
    CALL(finit_module, -1, BAD, 0),
    CALL(get_mempolicy, 0, 0, 0, 0, 99),
    CALL(init_module, BAD, 4096, BAD),
    CALL(io_uring_setup, 0, 0),
    CALL(io_uring_enter, -1, 0, 0, 0, 0, 0),
    CALL(io_uring_register, -1, 0, 0, 0),
    CALL(kcmp, -1, -1, 0, 0, 0),
    CALL(kexec_load, 0, 0, 0, 0xff0),
    CALL(keyctl, 9999, 0, 0, 0, 0),
    CALL(lookup_dcookie, 0, 0, 0),
    CALL(mbind, 0, 4096, 99, 0, 0, 0),
    CALL(memfd_create, BAD, 0),
    CALL(migrate_pages, -1, 0, 0, 0),
    CALL(mount, BAD, BAD, BAD, 0, 0),
    CALL(move_pages, -1, 0, 0, 0, 0, 0),
    CALL(name_to_handle_at, -1, BAD, BAD, BAD, 0),
    CALL(nfsservctl, 0, 0, 0),
    CALL(open_by_handle_at, -1, BAD, 0),
    CALL(perf_event_open, 0, 0, -1, -1, 0),
    CALL(pivot_root, BAD, BAD),
    CALL(process_vm_readv, -1, 0, 0, 0, 0, 0),
    CALL(process_vm_writev, -1, 0, 0, 0, 0, 0),
    CALL(ptrace, 0, 0, 0, 0),
    CALL(quotactl, 0, 0, 0, 0),
    CALL(reboot, 0, 0, 0, 0),
    CALL(request_key, BAD, BAD, 0, 0),
    CALL(seccomp, 99, 0, 0),
    CALL(set_mempolicy, 99, 0, 0),
    CALL(setdomainname, 0, 65),
    CALL(sethostname, 0, 65),
    CALL(setns, -1, 0),
    CALL(settimeofday, BAD, 0),
    CALL(swapoff, BAD),
    CALL(swapon, BAD, 0),
    CALL(syslog, 99, 0, 0),
    CALL(umount2, BAD, 0),
    CALL(userfaultfd, -1),
    CALL(vmsplice, -1, 0, 0, 0),
#ifdef __x86_64__
    CALL(_sysctl, 0),
    CALL(afs_syscall, 0),
    CALL(create_module, BAD, 0),
    CALL(get_kernel_syms, 0),
    CALL(ioperm, 0x20000, 1, 1),
    CALL(iopl, 9),
    CALL(kexec_file_load, -1, -1, 0, 0, 0xff0),
    CALL(modify_ldt, 99, 0, 0),
    CALL(query_module, 0),
    CALL(sysfs, 99, 0, 0),
    CALL(uselib, BAD),
    CALL(ustat, 0, BAD),
    CALL(vserver, 0),
    {"x32.getpid", 0x40000000 + SYS_getpid, {0}},
    {"x32.mount", 0x40000000 + SYS_mount, {BAD, BAD, BAD}},
#endif
    CALL(personality, 0),
    {"personality.read_implies_exec", SYS_personality, {0x0400000}},
    {"personality.linux32", SYS_personality, {8}},
    {"socket.packet", SYS_socket, {AF_PACKET, SOCK_RAW}},
    {"socket.raw", SYS_socket, {AF_INET, SOCK_RAW, 1}},
    {"socket.ping", SYS_socket, {AF_INET, SOCK_DGRAM, 1}},
    {"socket.alg", SYS_socket, {38, SOCK_SEQPACKET}},
    {"socket.vsock", SYS_socket, {40, SOCK_STREAM}},
    {"socket.audit", SYS_socket, {AF_NETLINK, SOCK_RAW, 9}},
    {"socket.route", SYS_socket, {AF_NETLINK, SOCK_RAW, 0}},
    {"socket.bluetooth", SYS_socket, {31, SOCK_RAW, 1}},
    {"unshare.mount", SYS_unshare, {CLONE_NEWNS}},
    {"unshare.user", SYS_unshare, {CLONE_NEWUSER}},
    {"unshare.net", SYS_unshare, {CLONE_NEWNET}},
    {"unshare.pid", SYS_unshare, {CLONE_NEWPID}},
    {"unshare.ipc", SYS_unshare, {CLONE_NEWIPC}},
    {"unshare.uts", SYS_unshare, {CLONE_NEWUTS}},
    {"unshare.cgroup", SYS_unshare, {CLONE_NEWCGROUP}},
    {"unshare.files", SYS_unshare, {CLONE_FILES}},
    {"clone.user", SYS_clone, {CLONE_NEWUSER | SIGCHLD}},
    {"clone.mount", SYS_clone, {CLONE_NEWNS | SIGCHLD}},
    {"clone.plain", SYS_clone, {SIGCHLD}},
    /* from here on one number for all machines */
    {"open_tree", 428, {-1, BAD, 0}},
    {"move_mount", 429, {-1, BAD, -1, BAD, 0}},
    {"fsopen", 430, {BAD, 0}},
    {"fsconfig", 431, {-1, 0, BAD}},
    {"fsmount", 432, {-1}},
    {"fspick", 433, {-1, BAD, 0}},
    {"pidfd_open", 434, {-1, 0}},
    {"openat2", 437, {-1, BAD, BAD, 0}},
    {"pidfd_getfd", 438, {-1, 0, 0}},
    {"process_madvise", 440, {-1, 0, 0, 0, 0}},
    {"mount_setattr", 442, {-1, BAD, 0, BAD, 0}},
    {"quotactl_fd", 443, {-1, 0, 0, 0}},
    {"landlock_create_ruleset", 444, {0, 0, 1}},
    {"memfd_secret", 447, {-1}},
    {"process_mrelease", 448, {-1, 0}},
    {"futex_waitv", 449, {0, 0, 0, 0, 0}},
    {"set_mempolicy_home_node", 450, {0, 0, 99, 0}},
    {"cachestat", 451, {-1, BAD, BAD, 0}},
    {"fchmodat2", 452, {-1, BAD, 0, 0}},
    {"map_shadow_stack", 453, {0, 0, 0}},
    {"statmount", 457, {BAD, BAD, 0, 0}},
    {"listmount", 458, {BAD, BAD, 0, 0}},
    {"lsm_get_self_attr", 459, {0, BAD, BAD, 0}},
    {"lsm_set_self_attr", 460, {0, BAD, 0, 0}},
    {"lsm_list_modules", 461, {BAD, BAD, 0}},
    {"mseal", 462, {1, 0, 0}},
    {"setxattrat", 463, {-1, BAD, 0, BAD, BAD, 0}},
    {"open_tree_attr", 467, {-1, BAD, 0, BAD, 0}},
    {"file_getattr", 468, {-1, BAD, BAD, 0, 0}},
    {"unknown.600", 600, {0}},
    {"unknown.100000", 100000, {0}},
};

static int outcome(long number, const long *a) {
    errno = 0;
    long result = syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SYS_clone && result == 0)
        _exit(0);
    return result < 0 ? errno : DONE;
}

#ifdef __x86_64__
/* The calls of 32-bit programs: a filter that knows one architecture alone lets them all through, or none. */
static const struct {
    const char *name;
    int number;
} old_calls[] = {{"i386.getpid", 20}, {"i386.mount", 21}, {"i386.iopl", 110}, {"i386.vm86", 166}, {"i386.stime", 25}};

static int old_outcome(int number) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"((long)number), "b"(9L), "c"(0L), "d"(0L) : "memory", "r8", "r9", "r10", "r11");
    return (int)result < 0 ? -(int)result : DONE;
}
#endif

static void say(pid_t child) {
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status))
        is("killed by signal %d", WTERMSIG(status));
    else
        is_errno(WEXITSTATUS(status) == DONE ? 0 : WEXITSTATUS(status));
    fflush(stdout);
}

void observe_calls(void) {
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        pid_t child = fork();
        if (!child)
            _exit(outcome(calls[i].number, calls[i].arguments));
        at("call.%s", calls[i].name);
        say(child);
    }
#ifdef __x86_64__
    for (size_t i = 0; i < sizeof old_calls / sizeof *old_calls; i++) {
        pid_t child = fork();
        if (!child)
            _exit(old_outcome(old_calls[i].number));
        at("call.%s", old_calls[i].name);
        say(child);
    }
#endif
}
