"""MLflow on PostgreSQL and S3: two pipeline runs, their promotion, races, restarts, credentials.

What is done by a user is done by the command line. Clients have no S3 keys and share no folder with
the server: what they get, they get from MLflow.
"""
