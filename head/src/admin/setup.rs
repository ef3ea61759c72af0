//! Setting a head up, on its Unix socket.

use std::sync::Arc;

use cloudtik_protocol::transport::Caller;
use cloudtik_protocol::wire;
use tonic::{Request, Response, Status};

use crate::identity::Keys;

#[derive(Clone)]
pub struct SetupService {
    pub keys: Arc<Keys>,
}

#[tonic::async_trait]
impl wire::setup_server::Setup for SetupService {
    async fn certificate_request(&self, request: Request<wire::Empty>) -> Result<Response<wire::CertificateRequestReply>, Status> {
        local_only(&request)?;
        let certificate_request = self.keys.request().map_err(|e| Status::internal(format!("{e:#}")))?.into();
        let expires_at = self.keys.expires_at();
        Ok(Response::new(wire::CertificateRequestReply {
            certificate_request,
            installed: expires_at.is_some(),
            expires_at: expires_at.unwrap_or(0),
        }))
    }

    async fn install_certificate(&self, request: Request<wire::InstallCertificateRequest>) -> Result<Response<wire::Empty>, Status> {
        local_only(&request)?;
        let certificate = request.into_inner().certificate;
        self.keys.install(&certificate).map_err(|e| Status::invalid_argument(format!("{e:#}")))?;
        Ok(Response::new(wire::Empty {}))
    }
}

fn local_only<T>(request: &Request<T>) -> Result<(), Status> {
    match request.extensions().get::<Caller>() {
        Some(Caller::LocalUser) => Ok(()),
        _ => Err(Status::permission_denied("a head is set up on its Unix socket")),
    }
}
