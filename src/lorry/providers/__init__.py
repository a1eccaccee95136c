"""Other people's embedding models, behind Amazon Bedrock or an API like OpenAI's; no torch."""
