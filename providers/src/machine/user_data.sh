#!/bin/sh
# Makes this machine a node of a CloudTik cluster: fetches the agent by its digest from the cluster's head, and starts it. Run again,
# it goes on from where it broke off. The token in it serves one key, once.
#
# Needs curl or GNU wget, and sha256sum. Exit codes: 2 this machine cannot be used, 3 the head refuses the token or has no such
# agent, 4 the head is not the one that the certificate stands for, 5 what it sent is not the agent, 6 it cannot be reached.
set -eu
umask 077

head=@HEAD@
root=@ROOT@
# Seconds without progress after which it gives up.
patience=${CLOUDTIK_PATIENCE:-@PATIENCE@}
bin=$root/bin
home=$root/node
work=$root/.fetch

say() { printf 'cloudtik: %s\n' "$*" >&2; }
fail() {
    code=$1
    shift
    say "$*"
    exit "$code"
}

system=$(uname -s)
machine=$(uname -m)
case "$system $machine" in
@AGENTS@
*) fail 2 "the head has no agent for $system on $machine" ;;
esac
program=cloudtik-agent-$sha256
part=$program.part

command -v sha256sum >/dev/null || fail 2 "sha256sum is needed; install coreutils"
if command -v curl >/dev/null; then
    client=curl
elif wget --version 2>/dev/null | grep -q '^GNU Wget 1'; then
    client=wget
else
    fail 2 "curl or GNU wget is needed to fetch the agent; install one of them"
fi

digest() { sha256sum <"$1" | cut -d ' ' -f 1; }
length() { if [ -f "$1" ]; then wc -c <"$1" | tr -d ' '; else echo 0; fi; }
now() { date +%s; }

is_this_node() { grep -qF @IDENTITY@ "$home/bootstrap.json"; }
if [ -f "$home/bootstrap.json" ] && ! is_this_node; then
    fail 2 "this machine is another node already: $home/bootstrap.json is not of @NAME@"
fi

# Options and headers stand in files: the arguments of a process can be read by others.
write_options() {
    cat >ca.pem <<'CLOUDTIK_CA'
@CA@
CLOUDTIK_CA
    mkdir -p no-other-authorities
    cat >curl.options <<'CLOUDTIK_OPTIONS'
cacert = "ca.pem"
capath = "no-other-authorities"
proto = "=https"
noproxy = "*"
header = "Authorization: Bearer @TOKEN@"
header = "Cloudtik-Node: @NODE@"
header = "Cloudtik-Generation: @GENERATION@"
connect-timeout = 10
speed-limit = 1
speed-time = 20
continue-at = -
write-out = "%{http_code}"
fail
silent
show-error
CLOUDTIK_OPTIONS
    cat >wget.options <<'CLOUDTIK_OPTIONS'
ca_certificate = ca.pem
ca_directory = no-other-authorities
use_proxy = off
header = Authorization: Bearer @TOKEN@
header = Cloudtik-Node: @NODE@
header = Cloudtik-Generation: @GENERATION@
timeout = 20
tries = 1
continue = on
server_response = on
CLOUDTIK_OPTIONS
}

# Sets `outcome` to whole, token, unknown, authority, longer, or what else went wrong.
attempt() {
    status=0
    if [ "$client" = curl ]; then
        answer=$(curl -q --config curl.options --output "$part" "https://$head/agent/$sha256" 2>said) || status=$?
        case $status in
        0) outcome=whole ;;
        22) outcome=$answer ;;
        60 | 77) outcome=authority ;;
        *) outcome="curl ended with $status: $(tail -n 1 said)" ;;
        esac
    else
        wget --config=wget.options --output-document="$part" "https://$head/agent/$sha256" 2>said || status=$?
        answer=$(sed -n 's|^ *HTTP/[0-9.]* \([0-9][0-9][0-9]\).*|\1|p' said | tail -n 1)
        case $status in
        0) outcome=whole ;;
        5) outcome=authority ;;
        6 | 8) outcome=$answer ;;
        *) outcome="wget ended with $status: $(grep -v '^ ' said | tail -n 1)" ;;
        esac
    fi
    case $outcome in
    401) outcome=token ;;
    403) outcome=unexpected ;;
    404) outcome=unknown ;;
    416) outcome=longer ;;
    esac
}

fetch() {
    latest=$(($(now) + patience))
    reported=
    while [ "$(length "$part")" -lt "$size" ]; do
        before=$(length "$part")
        attempt
        case $outcome in
        whole) break ;;
        longer) break ;;
        token) fail 3 "the head at $head refuses the join token of @NAME@" ;;
        unexpected) fail 3 "the head at $head does not wait for @NAME@: it has joined, or is not wanted any more" ;;
        unknown) fail 3 "the head at $head has no agent with the SHA-256 $sha256" ;;
        authority) fail 4 "the head at $head does not show a certificate of this cluster: $(tail -n 1 said)" ;;
        esac
        if [ "$(length "$part")" -gt "$before" ]; then
            latest=$(($(now) + patience))
        elif [ "$(now)" -ge "$latest" ]; then
            fail 6 "the agent cannot be fetched from the head at $head: $outcome"
        fi
        [ "$outcome" = "$reported" ] || say "the agent is not fetched yet, trying again: $outcome"
        reported=$outcome
        sleep 1
    done
}

place() {
    [ -d "$root" ] || mkdir -p "$root"
    mkdir -p "$work"
    cd "$work"
    trap 'rm -f "$work/curl.options" "$work/wget.options"' EXIT
    write_options
    fetch
    found=$(digest "$part")
    if [ "$found" != "$sha256" ]; then
        rm -f "$part"
        fail 5 "what the head at $head sent is not the agent: its SHA-256 is $found, not $sha256"
    fi
    chmod 700 "$part"
    # Before it has its name: a machine that loses its power must not start half of it.
    sync
    mkdir -p "$bin"
    mv "$part" "$bin/$program"
    cd /
    rm -rf "$work"
}

if [ ! -f "$bin/$program" ] || [ "$(digest "$bin/$program")" != "$sha256" ]; then
    place
fi
ln -s "$program" "$bin/.cloudtik-agent.$$"
mv -f "$bin/.cloudtik-agent.$$" "$bin/cloudtik-agent"

mkdir -p "$home"
if [ ! -f "$home/bootstrap.json" ]; then
    cat >"$home/.bootstrap.json.$$" <<'CLOUDTIK_BOOTSTRAP'
@BOOTSTRAP@
CLOUDTIK_BOOTSTRAP
    chmod 600 "$home/.bootstrap.json.$$"
    sync
    mv "$home/.bootstrap.json.$$" "$home/bootstrap.json"
fi

if [ -d /run/systemd/system ] && [ "$(id -u)" = 0 ]; then
    cat >/etc/systemd/system/cloudtik-agent.service <<'CLOUDTIK_UNIT'
@UNIT@
CLOUDTIK_UNIT
    systemctl daemon-reload
    systemctl enable --now cloudtik-agent.service
else
    # It leads a session of its own and leaves this one.
    "$bin/cloudtik-agent" run --detach --home "$home" </dev/null >/dev/null
fi
say "the agent of @NAME@ is started"
