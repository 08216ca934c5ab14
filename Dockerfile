# One image with all of Outhook; the command says which part runs. The links are the commands' names of before.

# The manifests and the shape of the crates, without what is in them: a change of the code leaves this
# as it was, and with it the compiled dependencies below.
FROM rust:1.95-bookworm AS manifests
WORKDIR /src
COPY . .
RUN rm -rf .sqlx \
 && find . -type f ! -path './.cargo/*' ! -name 'Cargo.*' ! -name lib.rs ! -name main.rs ! -name build.rs -delete \
 && find . -type d -empty -delete \
 && for file in $(find . -name '*.rs'); do echo 'fn main() {}' >"$file"; done

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY --from=manifests /src .
RUN cargo build --release --locked -p outhook
COPY . .
# Cargo goes by the time of change, and these may be older than the empty files just compiled.
RUN find . -path ./target -prune -o -type f -exec touch {} + \
 && cargo build --release --locked -p outhook \
 && cd target/release \
 && install -D -t /programs outhook \
 && for command in api relay worker migrate check receiver; do ln -s outhook "/programs/outhook-$command"; done

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --no-create-home --uid 10001 outhook
COPY --from=build /programs/ /usr/local/bin/
USER outhook
EXPOSE 8080
CMD ["outhook", "api"]
