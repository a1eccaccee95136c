#!/usr/bin/env bash
# Builds the image and pushes it to Amazon ECR, where SageMaker gets it.
# shellcheck disable=SC2016  # back quotes in messages are commands to read, not to run
set -euo pipefail
cd "$(dirname "$0")"
export AWS_PAGER=""

usage() {
  cat <<'TEXT'
usage: ./build_and_push.sh [image-name] [--tag T] [--region R] [--platform P] [--immutable] [--dry-run]

Builds the image and pushes it to Amazon ECR as <version>-<git revision> and, unless files have changes that are not
committed, as latest. The last line, alone on standard output, is the URI for SageMaker:   image=$(./build_and_push.sh)

  image-name      repository in ECR (default: lorry); created where missing, with a scan of every push
  --tag T         one more tag
  --region R      AWS region (default: AWS_REGION, AWS_DEFAULT_REGION, the AWS configuration, or you are asked)
  --platform P    platform of the image (default: linux/amd64, what SageMaker's GPU instances run)
  --immutable     create the repository with tags that cannot be moved; such a repository gets no latest
  --dry-run       look at everything, say what would be done, and change nothing

Environment: what the AWS command line reads (AWS_PROFILE, AWS_ENDPOINT_URL, ...); LORRY_REGISTRY=host:port pushes to
that registry instead of the one that ECR names.
TEXT
}

say() { printf '%s\n' "$*" >&2; }
die() {
  printf 'error: %s. %s\n' "$(tr -s '[:space:]' ' ' <<<"${1%.}" | sed 's/^ //; s/[. ]*$//')" "$2" >&2
  exit 1
}
try() { # a command that changes something
  if [[ $dry_run == true ]]; then say "would run: $*"; else "$@" >&2; fi
}

# Ends with what the AWS command line said ($2) while trying $1.
die_of_aws() {
  local log_in='Run `aws configure` or `aws sso login`, or set AWS_PROFILE.'
  case $2 in
    *"Unable to locate credentials"* | *"Partial credentials"* | *"Error loading SSO Token"*)
      die "no AWS credentials" "$log_in" ;;
    *ExpiredToken* | *"has expired"*) die "the AWS credentials have expired" "$log_in" ;;
    *InvalidClientTokenId* | *UnrecognizedClient* | *SignatureDoesNotMatch* | *InvalidAccessKeyId*)
      die "AWS does not know these credentials" "$log_in" ;;
    *"config profile"*) die "$2" "Set AWS_PROFILE to one that \`aws configure list-profiles\` shows." ;;
    *AccessDenied* | *"not authorized"*)
      die "AWS denies $1: $2" "Give your user the ECR rights in examples/iam-user-policy.json." ;;
    *"Could not connect"* | *"onnect timeout"* | *"Invalid endpoint"* | *"not a valid region"* | *"valid host"*)
      die "$1: $2" "Check the network and the region's name ($region)." ;;
    *) die "$1: $2" "The message is AWS's own; correct what it names, or try again." ;;
  esac
}

# Ends with what docker said ($2) while trying $1.
die_of_docker() {
  case $2 in
    *"permission denied"*"docker"*"sock"* | *"ermission denied while trying to connect"*)
      die "you may not use the Docker engine" 'Add yourself to its group (`sudo usermod -aG docker $USER`), log in again.' ;;
    *"annot connect"* | *"failed to connect"* | *"no such host"* | *"connection refused"*)
      die "$1: $2" "Check the network and that the Docker engine runs." ;;
    *immutable*) die "$1: $2" "Commit your changes, so that the tag is a new one, or give another --tag." ;;
    *denied* | *"no basic auth"* | *nauthorized* | *"403 Forbidden"*)
      die "$1: $2" "Give your user the ECR rights in examples/iam-user-policy.json, and check the account ($account)." ;;
    *) die "$1: $2" "The message is Docker's own; correct what it names, or try again." ;;
  esac
}

read_arguments() {
  name=lorry extra_tag="" region="" platform=linux/amd64 mutability=MUTABLE dry_run=false
  local named=false
  while (($#)); do
    case $1 in
      -h | --help) usage; exit 0 ;;
      --dry-run) dry_run=true ;;
      --immutable) mutability=IMMUTABLE ;;
      --tag | --region | --platform)
        [[ $# -ge 2 && $2 != -* && -n $2 ]] || die "$1 has no value" "Write $1 VALUE."
        case $1 in --tag) extra_tag=$2 ;; --region) region=$2 ;; --platform) platform=$2 ;; esac
        shift ;;
      -*) die "there is no option $1" "\`./build_and_push.sh --help\` lists those there are." ;;
      *)
        [[ $named == false ]] || die "there are two image names, $name and $1" "Give one."
        name=$1 named=true ;;
    esac
    shift
  done
  [[ $name =~ ^[a-z0-9]+([._/-][a-z0-9]+)*$ ]] ||
    die "the image name is '$name'" "Use lower-case letters, digits and single . _ - / between them."
  [[ -z $extra_tag || $extra_tag =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$ ]] ||
    die "the tag is '$extra_tag'" "Use up to 128 letters, digits, dots, hyphens and underscores."
}

check_tools() {
  command -v docker >/dev/null || die "docker is not installed" "Get it from https://docs.docker.com/get-docker."
  command -v aws >/dev/null ||
    die "the AWS command line is not installed" "Get it from https://aws.amazon.com/cli, or \`pip install awscli\`."
  local said
  if ! said=$(docker info 2>&1 >/dev/null); then
    [[ $said == *"ermission denied"* ]] && die_of_docker "docker info" "$said"
    die "the Docker engine does not answer" 'Start it: `sudo systemctl start docker`, or Docker Desktop.'
  fi
}

find_region() {
  region=${region:-${AWS_REGION:-${AWS_DEFAULT_REGION:-$(aws configure get region 2>/dev/null || true)}}}
  if [[ -z $region && -t 0 && -t 2 ]]; then
    read -r -p "AWS region (such as eu-west-1): " region
  fi
  [[ -n $region ]] || die "no AWS region" 'Give --region, set AWS_REGION, or run `aws configure`.'
}

find_account() {
  account=$(aws sts get-caller-identity --region "$region" --query Account --output text 2>&1) ||
    die_of_aws "asking whose account this is" "$account"
}

# Sets repository (registry host and name) and mutability; creates the repository where missing.
find_repository() {
  local fields='repositories[0].[repositoryUri,imageTagMutability]' said
  if said=$(aws ecr describe-repositories --region "$region" --repository-names "$name" \
    --query "$fields" --output text 2>&1); then
    say "repository $name: there already"
  elif [[ $said != *RepositoryNotFoundException* ]]; then
    die_of_aws "looking for the repository $name" "$said"
  elif [[ $dry_run == true ]]; then
    say "would create the repository $name ($mutability tags, scan on push)"
    local suffix=amazonaws.com
    [[ $region == cn-* ]] && suffix=amazonaws.com.cn
    said="$account.dkr.ecr.$region.$suffix/$name $mutability"
  else
    said=$(aws ecr create-repository --region "$region" --repository-name "$name" \
      --image-scanning-configuration scanOnPush=true --image-tag-mutability "$mutability" \
      --query "${fields/repositories\[0\]/repository}" --output text 2>&1) ||
      die_of_aws "creating the repository $name" "$said"
    say "repository $name: created"
  fi
  read -r repository mutability <<<"$said"
  if [[ -n ${LORRY_REGISTRY:-} ]]; then
    repository=$LORRY_REGISTRY/${repository#*/}
  fi
}

# Sets tags, the one that names this very source first, and the arguments of the build.
name_tags() {
  local version revision short
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -n 1)
  [[ -n $version ]] || die "pyproject.toml has no version" 'Put version = "..." into its [project] table.'
  revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
  short=$(git rev-parse --short=7 HEAD 2>/dev/null || echo unknown)
  if [[ -n $(git status --porcelain 2>/dev/null) ]]; then
    revision+=-dirty short+=-dirty
  fi
  tags=("$version-$short")
  if [[ $short == *-dirty ]]; then
    say "the working tree has changes that are not committed: the tag ends in -dirty, and latest is left alone"
  elif [[ $mutability == IMMUTABLE ]]; then
    say "the tags of $name are immutable: latest is left alone"
  else
    tags+=(latest)
  fi
  [[ -z $extra_tag ]] || tags+=("$extra_tag")
  version_argument="VERSION=$version" revision_argument="REVISION=$revision"
}

build() {
  local tag command=(docker build)
  if docker buildx version >/dev/null 2>&1; then
    command=(docker buildx build --load)
    # An attestation would make the image an OCI index, which SageMaker may refuse.
    if docker buildx build --help | grep -q -- --provenance; then command+=(--provenance=false); fi
  fi
  command+=(--platform "$platform" --build-arg "$version_argument" --build-arg "$revision_argument")
  for tag in "${tags[@]}"; do command+=(--tag "$repository:$tag"); done
  say "building $repository:${tags[0]} for $platform"
  DOCKER_BUILDKIT=1 try "${command[@]}" . || die "the image did not build" "Docker's own lines above say why."
}

log_in() {
  local host=${repository%%/*} password said
  if [[ $dry_run == true ]]; then
    say "would log in to $host"
    return
  fi
  password=$(aws ecr get-login-password --region "$region" 2>&1) || die_of_aws "asking for a password to $host" "$password"
  said=$(docker login --username AWS --password-stdin "$host" <<<"$password" 2>&1 >/dev/null) ||
    die_of_docker "logging in to $host" "$said"
}

# The digest that the registry has under a tag, or nothing.
digest_there() {
  docker buildx imagetools inspect "$repository:$1" 2>/dev/null | sed -n 's/^Digest: *//p' | head -n 1 || true
}

# The digest under which this engine pushed, or would know again, the image of a tag.
digest_here() {
  docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$repository:$1" 2>/dev/null |
    sed -n "s|^$repository@||p" | head -n 1
}

push() {
  local tag there said
  for tag in "${tags[@]}"; do
    if [[ $dry_run == true ]]; then
      say "would push $repository:$tag"
      continue
    fi
    there=$(digest_there "$tag")
    if [[ -n $there && $there == "$(digest_here "$tag")" ]]; then
      say "$tag: there already"
    elif [[ -n $there && $mutability == IMMUTABLE && $tag == "${tags[0]}" && $tag != *-dirty ]]; then
      say "$tag: there already, built from the same commit"
    else
      { said=$(docker push "$repository:$tag" 2>&1 >&3); } 3>&2 || # progress is shown, the error kept
        die_of_docker "pushing $repository:$tag" "$said"
    fi
  done
}

main() {
  read_arguments "$@"
  check_tools
  find_region
  find_account
  say "account $account, region $region"
  find_repository
  name_tags
  build
  log_in
  push
  [[ $dry_run == true ]] || say "digest: $(digest_there "${tags[0]}")"
  printf '%s\n' "$repository:${tags[0]}"
}

main "$@"
