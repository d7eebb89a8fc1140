# Read once by the PostgreSQL image's own start, on an empty volume: a database and a role of its own for each server.
(
  set -eu
  for name in mlflow prefect; do
    case $name in
      mlflow) password=$MLFLOW_DATABASE_PASSWORD ;;
      prefect) password=$PREFECT_DATABASE_PASSWORD ;;
    esac
    psql --set ON_ERROR_STOP=1 --username postgres --no-password --set name="$name" --set password="$password" <<'END'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT, TEMPORARY ON DATABASE :"name" FROM PUBLIC;
END
  done
)
