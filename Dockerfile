# docker build -t distillery . && docker run --rm -v "$PWD:/work" distillery
# The lock's versions on CPU builds of torch, which have other hashes than those of the lock; results go to ./results.
FROM python:3.11-slim
ENV UV_TORCH_BACKEND=cpu
COPY . /distillery
RUN pip install --no-cache-dir "uv>=0.7,<1" \
    && uv pip install --system --no-cache --no-verify-hashes -c /distillery/requirements.lock "/distillery[notebooks]"
WORKDIR /work
ENTRYPOINT ["distillery"]
CMD ["run", "00_quickstart"]
