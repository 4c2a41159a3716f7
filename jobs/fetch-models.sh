#!/bin/bash
# Fetches the models that configs/sonify/sam.yaml and configs/train/pixart_xl_512.yaml name, once, into a folder that
# the nodes see: hub models into FOLDER/hub, and FOLDER/cogvlm-chat-hf, CogVLM with the tokenizer of Vicuna.
#
#   bash jobs/fetch-models.sh /data/models                # or behind the folder `sonify`, or `train`: a part of them
#
# Needs: `hf` (huggingface-hub: `make setup`, or the images), the hub; HF_HOME=FOLDER for the runs that use them.
# Whoever overrides a model fetches that one. The names and revisions are the configurations'.
# Takes: some 54 GB (CogVLM 35, LLaVA 14, PixArt 2.5, CLAP 0.6, AST 0.4, VAE 0.3: not measured); run again, it goes on.
set -euo pipefail
folder="$(realpath -m "${1:?say where: bash jobs/fetch-models.sh FOLDER}")"
shift
export HF_HOME="${folder}"
weights=(--include "*.json" --include "*.txt" --include "*.model" --include "*.jinja" --include "*.safetensors")

[ "$#" -gt 0 ] || set -- sonify train
for part in "$@"; do
  case "${part}" in
    sonify)
      hf download llava-hf/llava-1.5-7b-hf --revision b234b804b114d9e37bb655e11cbbb5f5e971b7a9
      hf download THUDM/cogvlm-chat-hf --revision e29dc3ba206d524bf8efbfc60d80fc4556ab0e3c \
        --include "*.json" --include "*.safetensors" --local-dir "${folder}/cogvlm-chat-hf"
      hf download lmsys/vicuna-7b-v1.5 --revision 3321f76e3f527bd14065daf69dad9344000a201d \
        special_tokens_map.json tokenizer.model tokenizer_config.json --local-dir "${folder}/cogvlm-chat-hf"
      hf download laion/clap-htsat-unfused --revision 79b58ed25fc00386262a2bea4b19fd21dc4310a0 "${weights[@]}"
      hf download stabilityai/sd-vae-ft-ema --revision f04b2c4b98319346dad8c65879f680b1997b204a "${weights[@]}"
      hf download MIT/ast-finetuned-audioset-10-10-0.4593 --revision f826b80d28226b62986cc218e5cec390b1096902 "${weights[@]}"
      ;;
    train)
      hf download PixArt-alpha/PixArt-XL-2-512x512 --revision 50f702106901db6d0f8b67eb88e814c56ded2692 --include "transformer/*"
      hf download stabilityai/sd-vae-ft-ema --revision f04b2c4b98319346dad8c65879f680b1997b204a "${weights[@]}"
      hf download MIT/ast-finetuned-audioset-10-10-0.4593 --revision f826b80d28226b62986cc218e5cec390b1096902 "${weights[@]}"
      ;;
    *)
      echo "${part}: expected sonify or train" >&2
      exit 2
      ;;
  esac
done
