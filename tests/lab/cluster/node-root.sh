#!/bin/sh
# node-root.sh NODE-FOLDER CHECKOUT CACHE: turns the mount namespace it runs in into a node's, then
# stays as its holder. Run in a mount namespace of its own, inside the node's network namespace.
#
# A hostPath volume or a daemon finds here what is the node's own, and never the machine's:
#   /run /etc /opt /var/lib            emptied at the end (memory)
#   /var/log /var/lib/{kubelet,containerd}   in NODE-FOLDER (disk)
#   /sys                               shows the node's interfaces; the cgroups stay
set -eu
folder=$1
shift

# The machine's named network namespaces would live on in this copy after they are deleted there.
umount --lazy --recursive /run/netns 2>/dev/null || true
mount -t tmpfs -o mode=755 tmpfs /run
own=/run/.lab
mkdir -p "$own/folder" "$own/keep" /run/netns /run/lock
mount --bind "$folder" "$own/folder"

# The checkout and the cache keep their paths, also where they lie under something replaced below.
n=0
for path in "$@"; do
  n=$((n + 1))
  mkdir "$own/keep/$n"
  mount --rbind "$path" "$own/keep/$n"
done

overlay() { # overlay PATH: the machine's content, with changes that are the node's alone
  name=$(echo "$1" | tr / _)
  mkdir -p "$own/upper/$name" "$own/workdir/$name"
  mount -t overlay -o "lowerdir=$1,upperdir=$own/upper/$name,workdir=$own/workdir/$name" overlay "$1"
}
overlay /etc
overlay /opt
overlay /var/lib
# Pods mount it. Where the machine has no modules, the container runtime would create the folder.
[ -d /lib/modules ] || { overlay /usr/lib && mkdir -p /lib/modules; }
rm -rf /etc/cni /opt/cni /etc/containerd /var/lib/cni
mkdir -p /etc/cni/net.d /opt/cni/bin /var/lib/kubelet /var/lib/containerd
mount --bind "$own/folder/log" /var/log
mount --bind "$own/folder/kubelet" /var/lib/kubelet
mount --bind "$own/folder/containerd" /var/lib/containerd

n=0
for path in "$@"; do
  n=$((n + 1))
  case $path/ in
    /etc/* | /opt/* | /var/lib/* | /var/log/* | /run/* | /usr/lib/*)
      mkdir -p "$path"
      mount --rbind "$own/keep/$n" "$path"
      ;;
  esac
done

# A sysfs shows the interfaces of the network namespace that mounted it.
mkdir "$own/cgroup"
mount --rbind /sys/fs/cgroup "$own/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$own/cgroup" /sys/fs/cgroup
umount -l "$own/cgroup"
mount -t bpf bpf /sys/fs/bpf 2>/dev/null || true # only other agents want it

# kubelet insists on these, and they are the machine's: it may write to files in their place.
mkdir "$own/sysctl"
for pair in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  key=${pair%%=*}
  file=$own/sysctl/$(echo "$key" | tr / _)
  echo "${pair##*=}" >"$file"
  [ ! -e "/proc/sys/$key" ] || mount --bind "$file" "/proc/sys/$key"
done

touch "$folder/ready"
exec sleep infinity
