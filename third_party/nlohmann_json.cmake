# nlohmann-json 3.11: safetensors headers, metrics, run state.
find_package(nlohmann_json 3.11 REQUIRED)
