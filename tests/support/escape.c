/* Leaves a chroot the old way: with a working directory above it, upwards and into a chroot there; then lists "/". */

#include <dirent.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

int main(void) {
    mkdir("/jail", 0755);
    if (chdir("/") || chroot("/jail"))
        return 1;
    for (int i = 0; i < 100; i++)
        if (chdir(".."))
            return 2;
    if (chroot("."))
        return 3;
    DIR *root = opendir("/");
    if (!root)
        return 4;
    for (struct dirent *entry; (entry = readdir(root));)
        puts(entry->d_name);
    return 0;
}
