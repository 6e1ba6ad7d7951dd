name="$(cat)"
echo "Hello, ${name:-world}!"
